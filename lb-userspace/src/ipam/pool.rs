//! The custom resource `AddressPool`: which addresses may be given to which Services, and who announces them.
//!
//! ```yaml
//! apiVersion: fairway.io/v1alpha1
//! kind: AddressPool
//! metadata: {name: default}
//! spec:
//!   blocks: [{cidr: 192.0.2.0/24}, {start: "2001:db8::100", stop: "2001:db8::1ff"}]
//! ```

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, LabelSelector};
use kube::CustomResource;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// A pool of addresses for Services of type LoadBalancer.
#[derive(CustomResource, Serialize, Deserialize, Clone, PartialEq, Debug, Default, JsonSchema)]
#[kube(
    group = "fairway.io",
    version = "v1alpha1",
    kind = "AddressPool",
    plural = "addresspools",
    shortname = "pool",
    category = "fairway",
    status = "AddressPoolStatus",
    derive = "PartialEq",
    derive = "Default",
    printcolumn = r#"{"name": "Disabled", "type": "boolean", "jsonPath": ".spec.disabled"}"#,
    printcolumn = r#"{"name": "Used", "type": "string", "jsonPath": ".status.used"}"#,
    printcolumn = r#"{"name": "Free", "type": "string", "jsonPath": ".status.free"}"#,
    printcolumn = r#"{"name": "Problem", "type": "string", "jsonPath": ".status.conditions[?(@.type=='Ready')].message"}"#,
    printcolumn = r#"{"name": "Age", "type": "date", "jsonPath": ".metadata.creationTimestamp"}"#
)]
#[serde(rename_all = "camelCase")]
pub struct AddressPoolSpec {
    /// The addresses, of both families if you like. They may be added to at any time; an address in use stays with its
    /// Service when its block is taken away.
    #[schemars(length(min = 1, max = 1024))]
    pub blocks: Vec<Block>,
    /// Services that may have addresses of this pool, by their labels; without it, all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub service_selector: Option<LabelSelector>,
    /// Services that may have addresses of this pool, by the labels of their namespace; without it, all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub namespace_selector: Option<LabelSelector>,
    /// Whether the first and the last address of each CIDR are left out: some networks take them for the network itself and
    /// for broadcast.
    #[serde(default, skip_serializing_if = "is_default")]
    pub avoid_first_and_last: bool,
    /// No new address is given from this pool. Those in use stay.
    #[serde(default, skip_serializing_if = "is_default")]
    pub disabled: bool,
    /// How the network learns where the addresses are.
    #[serde(default, skip_serializing_if = "is_default")]
    pub announcement: Announcement,
}

/// Addresses: either `cidr`, or `start` and `stop`.
#[derive(Serialize, Deserialize, Clone, PartialEq, Eq, Debug, Default, JsonSchema)]
#[serde(rename_all = "camelCase")]
#[schemars(extend("x-kubernetes-validations" = [{
    "rule": "has(self.cidr) ? !has(self.start) && !has(self.stop) : has(self.start) && has(self.stop)",
    "message": "a block is either `cidr`, or `start` and `stop`",
}]))]
pub struct Block {
    /// A prefix, such as `192.0.2.0/24`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cidr: Option<String>,
    /// The first address of a range.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub start: Option<String>,
    /// The last address of a range, of the same family.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stop: Option<String>,
}

/// How the network learns where addresses are.
#[derive(Serialize, Deserialize, Clone, PartialEq, Debug, Default, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Announcement {
    /// `L2`: a node answers ARP and NDP for each address. `None`: something else brings them here, such as static routes.
    #[serde(default)]
    pub mode: AnnouncementMode,
    /// Nodes that may announce, by their labels; without it, all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub node_selector: Option<LabelSelector>,
    /// Names of the devices on which a node announces, `*` standing for any characters, such as `eth*`; without it, all
    /// uplinks.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub interfaces: Vec<String>,
}

/// How the network learns where addresses are.
#[derive(Serialize, Deserialize, Clone, Copy, PartialEq, Eq, Debug, Default, JsonSchema)]
pub enum AnnouncementMode {
    /// A node answers ARP and NDP.
    #[default]
    L2,
    /// Nobody announces.
    None,
}

/// What has become of a pool.
#[derive(Serialize, Deserialize, Clone, PartialEq, Debug, Default, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct AddressPoolStatus {
    /// Addresses in use, as a decimal number.
    #[serde(default)]
    pub used: String,
    /// Addresses not in use, as a decimal number: of IPv6 there can be more than a number in JSON holds.
    #[serde(default)]
    pub free: String,
    /// The generation of the spec that this is about.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// `Ready`: False if something is wrong with the pool. `Exhausted`: True if a Service could not be given an address.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub conditions: Vec<Condition>,
}

fn is_default<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}
