//! Addresses for Services of type LoadBalancer.

pub mod pool;
