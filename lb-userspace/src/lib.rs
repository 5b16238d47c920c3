//! The node agent and the command line of Fairway.
