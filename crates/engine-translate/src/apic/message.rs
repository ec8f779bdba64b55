//! Interrupt messages: from an ICR, an IO-APIC entry or (later) an MSI, to local APICs.

/// What is delivered.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Delivery {
    Fixed(u8),
    /// Goes to one of the destinations; this model takes the first.
    LowestPriority(u8),
    Nmi,
    Init,
    StartUp(u8),
}

/// To whom.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Destination {
    /// One local APIC by identifier; 0xffff_ffff is all.
    Physical(u32),
    /// x2APIC logical: cluster in the high half, a bit for each member in the low half.
    Logical(u32),
    OnlySelf,
    All,
    AllButSelf,
}

/// An interrupt message.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Message {
    pub(crate) delivery: Delivery,
    pub(crate) destination: Destination,
    /// Level-triggered: the end of interrupt is broadcast to the IO-APIC.
    pub(crate) level: bool,
}

impl Destination {
    /// Whether local APIC `id` is meant, by a message that `sender` sent.
    pub(crate) fn includes(self, id: u32, sender: Option<u32>) -> bool {
        match self {
            Self::Physical(wanted) => wanted == u32::MAX || wanted == id,
            Self::Logical(wanted) => {
                let logical = logical_id(id);
                wanted == u32::MAX
                    || wanted >> 16 == logical >> 16 && wanted & logical & 0xffff != 0
            }
            Self::OnlySelf => sender == Some(id),
            Self::All => true,
            Self::AllButSelf => sender != Some(id),
        }
    }
}

/// The logical identifier that an x2APIC derives from its identifier (SDM volume 3, 11.12.10.2).
pub(crate) const fn logical_id(id: u32) -> u32 {
    (id >> 4) << 16 | 1 << (id & 15)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn logical_destinations_name_cluster_members() {
        assert_eq!(logical_id(0x21), 0x0002_0002);
        let pair = Destination::Logical(0x0002_0003);
        assert!(pair.includes(0x20, None) && pair.includes(0x21, None));
        assert!(!pair.includes(0x22, None) && !pair.includes(0x01, None));
    }

    #[test]
    fn shorthands() {
        assert!(Destination::OnlySelf.includes(3, Some(3)));
        assert!(!Destination::AllButSelf.includes(3, Some(3)));
        assert!(Destination::AllButSelf.includes(2, Some(3)));
        assert!(Destination::Physical(u32::MAX).includes(7, None));
    }
}
