//! The node agent, the Ingress controller and the command line of Fairway.

pub mod agent;
pub mod announce;
pub mod cli;
pub mod connections;
pub mod datapath;
pub mod desired;
pub mod events;
pub mod health;
pub mod http;
pub mod ingress;
pub mod ipam;
pub mod maglev;
pub mod maps;
pub mod model;
pub mod netlink;
pub mod observe;
pub mod reconcile;
pub mod sources;
pub mod sys;
