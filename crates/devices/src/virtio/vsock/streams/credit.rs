//! Credit: how much may be on its way (virtio 1.2, 5.10.6.3).
//!
//! Each side tells in every packet how large its buffer is (`buf_alloc`) and how many bytes have left
//! it so far (`fwd_cnt`). The other side counts what it has sent (`tx_cnt`) and keeps
//! `tx_cnt - fwd_cnt <= buf_alloc`. All counters wrap at 2^32.

use super::Violation;

/// More than this is never on its way, whatever the guest offers: so that in wrapping arithmetic
/// "ahead" and "behind" are two things.
const ON_THE_WAY_MAX: u32 = 1 << 30;

/// What we may send to the guest.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct GuestRoom {
    alloc: u32,
    /// The guest's `fwd_cnt`; `sent - forwarded <= ON_THE_WAY_MAX`, in wrapping arithmetic.
    forwarded: u32,
    sent: u32,
}

impl GuestRoom {
    /// Takes what a packet says of the guest's buffer.
    pub(super) fn update(&mut self, alloc: u32, forwarded: u32) -> Result<(), Violation> {
        self.alloc = alloc;
        let news = forwarded.wrapping_sub(self.forwarded);
        if news <= self.sent.wrapping_sub(self.forwarded) {
            self.forwarded = forwarded;
        } else if news <= u32::MAX / 2 {
            // It has forwarded what was never sent.
            return Err(Violation::Credit);
        }
        // Otherwise it is behind what we know: two of the guest's threads, one overtaken.
        Ok(())
    }

    /// The guest's buffer, full or not.
    pub(super) fn alloc(&self) -> u32 {
        self.alloc
    }

    /// Bytes that may be sent now.
    pub(super) fn free(&self) -> u32 {
        let on_the_way = self.sent.wrapping_sub(self.forwarded);
        self.alloc.min(ON_THE_WAY_MAX).saturating_sub(on_the_way)
    }

    /// `len` bytes go out; `len <= self.free()`.
    pub(super) fn send(&mut self, len: u32) {
        debug_assert!(len <= self.free());
        self.sent = self.sent.wrapping_add(len);
    }
}

/// What the guest may send to us.
///
/// One byte less is offered than there is room for, but in the packet that ends both directions: so that offers more
/// than any before, and whatever is on its way, there is room. Linux needs that: a program that waits to write is
/// woken only if there is, and a stream that is shut on both sides hears no more of us (`vsock_poll`,
/// `virtio_transport_recv_connected`). It sends no more than its own buffer has, either: what is offered beyond that
/// would be no difference.
#[derive(Clone, Copy, Debug)]
pub(super) struct OwnRoom {
    alloc: u32,
    /// What the guest was told of `alloc`.
    told_alloc: u32,
    received: u32,
    /// `received - forwarded <= alloc`, in wrapping arithmetic.
    forwarded: u32,
    /// What of `forwarded` the guest knows.
    told: u32,
}

impl OwnRoom {
    pub(super) fn new(alloc: u32) -> Self {
        Self { alloc, told_alloc: alloc, received: 0, forwarded: 0, told: 0 }
    }

    /// `len` bytes have come.
    pub(super) fn receive(&mut self, len: u32) -> Result<(), Violation> {
        let held = self.received.wrapping_sub(self.forwarded);
        if len > self.alloc - held {
            return Err(Violation::Credit);
        }
        self.received = self.received.wrapping_add(len);
        Ok(())
    }

    /// `len` of them have gone on.
    pub(super) fn forward(&mut self, len: u32) {
        self.forwarded = self.forwarded.wrapping_add(len);
        debug_assert!(self.received.wrapping_sub(self.forwarded) <= self.alloc);
    }

    /// Whether the guest had better be told: it thinks that half of the buffer or more is taken,
    /// and that is no longer so. Told less often it would wait; more often, we would chatter.
    pub(super) fn is_news(&self) -> bool {
        let thought_held = self.received.wrapping_sub(self.told);
        self.forwarded != self.told && thought_held >= self.told_alloc / 2
    }

    /// `buf_alloc` and `fwd_cnt` for a packet to a guest whose own buffer has `guest_alloc` bytes, 0 if it has not
    /// said; `last` is the one that ends both directions.
    pub(super) fn tell(&mut self, guest_alloc: u32, last: bool) -> (u32, u32) {
        self.told = self.forwarded;
        self.told_alloc = match guest_alloc {
            _ if last => self.alloc,
            0 | 1 => self.alloc - 1,
            _ => self.alloc.min(guest_alloc) - 1,
        };
        (self.told_alloc, self.forwarded)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Credit that has gone round `around` bytes already.
    fn guest_room(alloc: u32, around: u32) -> GuestRoom {
        GuestRoom { alloc, forwarded: around, sent: around }
    }

    #[test]
    fn what_is_sent_takes_room_until_it_is_forwarded_across_the_wrap_too() {
        for around in [0, u32::MAX - 50] {
            let mut room = guest_room(100, around);
            room.send(70);
            assert_eq!(room.free(), 30);
            room.update(100, around.wrapping_add(60)).unwrap();
            assert_eq!(room.free(), 90);
            room.update(5, around.wrapping_add(60)).unwrap();
            assert_eq!(room.free(), 0, "a buffer may shrink");
        }
    }

    #[test]
    fn forwarding_what_was_not_sent_is_refused_and_old_news_is_passed_over() {
        let mut room = guest_room(100, 10);
        room.send(20);
        assert_eq!(room.update(100, 31), Err(Violation::Credit));
        room.update(100, 30).unwrap();
        room.update(100, 15).unwrap();
        assert_eq!(room.free(), 100);
    }

    #[test]
    fn an_endless_buffer_is_none() {
        let mut room = guest_room(u32::MAX, 0);
        room.send(room.free());
        assert_eq!(room.free(), 0);
    }

    #[test]
    fn more_than_the_buffer_is_refused() {
        let mut room = OwnRoom { received: u32::MAX, forwarded: u32::MAX, ..OwnRoom::new(100) };
        room.receive(100).unwrap();
        assert_eq!(room.receive(1), Err(Violation::Credit));
        room.forward(30);
        assert_eq!(room.receive(31), Err(Violation::Credit));
        room.receive(30).unwrap();
    }

    #[test]
    fn the_guest_is_told_when_it_thinks_the_buffer_half_full() {
        let mut room = OwnRoom::new(100);
        room.receive(49).unwrap();
        room.forward(49);
        assert!(!room.is_news());
        room.receive(1).unwrap();
        assert!(room.is_news());
        assert_eq!(room.tell(1000, false), (99, 49));
        assert!(!room.is_news());
    }

    #[test]
    fn the_last_offer_is_more_than_any_before() {
        for guest_alloc in [0, 1, 50, 100, 1000] {
            let mut room = OwnRoom::new(100);
            let (offered, forwarded) = room.tell(guest_alloc, false);
            let (last, still) = room.tell(guest_alloc, true);
            assert_eq!((forwarded, still), (0, 0));
            // It sends no more than its own buffer has.
            let cap = |offer: u32| if guest_alloc > 1 { offer.min(guest_alloc) } else { offer };
            assert!(cap(last) > cap(offered), "{guest_alloc}");
        }
    }
}
