//! Ingress: HTTP and HTTPS from outside to Services, by host and path.

pub mod follow;
pub mod objects;
pub mod status;
pub mod table;
pub mod tls;
