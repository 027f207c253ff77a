//! Names of connections.

use std::fmt;

/// Names a connection for as long as the process lives: its slot may be used again, the generation tells.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ConnectionId {
    /// Shard that owns the connection.
    pub shard: u16,
    /// Slot in that shard's slab.
    pub slot: u32,
    /// Generation of the slot.
    pub generation: u32,
}

impl fmt::Display for ConnectionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}.{}", self.shard, self.slot, self.generation)
    }
}
