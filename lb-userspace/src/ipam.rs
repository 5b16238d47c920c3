//! Addresses for Services of type LoadBalancer: which there are ([`pool`]), which Service has which ([`allocate`]), and how
//! that comes to be written down ([`controller`]).

pub mod allocate;
pub mod controller;
pub mod pool;
mod status;
