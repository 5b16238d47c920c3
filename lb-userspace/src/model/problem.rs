//! What is wrong with an object, as data.

use std::fmt;

use super::ObjectKey;

/// What a [`Problem`] is about.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub enum ObjectKind {
    /// A Service.
    Service,
    /// An EndpointSlice.
    EndpointSlice,
    /// A Node.
    Node,
    /// A ServiceCIDR.
    ServiceCidr,
    /// A manifest file; its path is the name.
    File,
}

/// Something that is wrong with an object. The rest of the object, and all other objects, are served.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub struct Problem {
    /// The kind of object.
    pub kind: ObjectKind,
    /// The object.
    pub object: ObjectKey,
    /// Path of the field within the object, such as `spec.ports[0].nodePort`.
    pub field: String,
    /// What is wrong and what follows from it, one sentence without a full stop.
    pub message: String,
    /// What an operator should do about it, one sentence without a full stop.
    pub remedy: String,
}

impl fmt::Display for ObjectKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Service => "Service",
            Self::EndpointSlice => "EndpointSlice",
            Self::Node => "Node",
            Self::ServiceCidr => "ServiceCIDR",
            Self::File => "file",
        })
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} {}: {}: {}; {}",
            self.kind, self.object, self.field, self.message, self.remedy
        )
    }
}
