"""A driver that sends more than it has credit for: on the bare device, after Linux's driver is gone.

Calls the given port of the host, where nobody reads, and sends until the connection is reset. Prints the
room that was offered, how much was sent, and the device's status; then Linux has the device again.
"""
import ctypes, glob, mmap, os, re, struct, sys, time

PAGE = 4096
HOST, OUR_PORT = 2, 77
REQUEST, RESPONSE, RESET, READ_WRITE = 1, 2, 3, 5
RECEIVE, TRANSMIT, EVENTS = 0, 1, 2
SIZE = 8
VSOCK = 19
HEADER = struct.Struct("<QQIIIHHIII")
NEXT, WRITE = 1, 2


def unbound():
    """Takes the device from Linux. Its address, and what brings it back."""
    for device in glob.glob("/sys/bus/virtio/devices/*"):
        with open(device + "/device") as kind:
            if int(kind.read(), 16) == VSOCK:
                parent = os.path.dirname(os.path.realpath(device))
    name = os.path.basename(parent)
    with open("/sys/bus/platform/drivers/virtio-mmio/unbind", "w") as driver:
        driver.write(name)
    with open("/proc/iomem") as map:
        address = re.search(r"([0-9a-f]+)-[0-9a-f]+ : " + re.escape(name), map.read())
    return int(address[1], 16), name


class Page:
    """A page of ours, and where it is."""

    def __init__(self):
        shared = mmap.MAP_SHARED | mmap.MAP_ANONYMOUS | mmap.MAP_POPULATE
        self.bytes = mmap.mmap(-1, PAGE, shared)
        self.bytes[0] = 0
        at = ctypes.addressof(ctypes.c_char.from_buffer(self.bytes))
        with open("/proc/self/pagemap", "rb") as pages:
            pages.seek(at // PAGE * 8)
            entry = int.from_bytes(pages.read(8), "little")
        assert entry >> 63, "not in memory"
        self.address = (entry & (1 << 55) - 1) * PAGE


class Queue:
    """Rings in one page; buffer n is descriptor n."""

    AVAILABLE, USED = 0x400, 0x800

    def __init__(self, device, index, writable):
        self.device, self.index, self.page, self.seen = device, index, Page(), 0
        self.buffers = [Page() for _ in range(SIZE)]
        for number, buffer in enumerate(self.buffers):
            flags = WRITE if writable else 0
            descriptor = struct.pack("<QIHH", buffer.address, PAGE, flags, 0)
            self.page.bytes[16 * number:16 * number + 16] = descriptor
        device[0x30], device[0x38] = index, SIZE
        for register, offset in ((0x80, 0), (0x90, self.AVAILABLE), (0xA0, self.USED)):
            address = self.page.address + offset
            device[register], device[register + 4] = address & 0xFFFFFFFF, address >> 32
        device[0x44] = 1
        self.offered = 0

    def put16(self, offset, value):
        self.page.bytes[offset:offset + 2] = struct.pack("<H", value)

    def offer(self, number, length=PAGE):
        self.page.bytes[16 * number + 8:16 * number + 12] = struct.pack("<I", length)
        self.put16(self.AVAILABLE + 4 + 2 * (self.offered % SIZE), number)
        self.offered = (self.offered + 1) & 0xFFFF
        self.put16(self.AVAILABLE + 2, self.offered)
        self.device[0x50] = self.index

    def has_used(self):
        return struct.unpack_from("<H", self.page.bytes, self.USED + 2)[0] != self.seen

    def used(self):
        """The next buffer that the device is done with."""
        while not self.has_used():
            time.sleep(0.001)
        entry = self.USED + 4 + 8 * (self.seen % SIZE)
        self.seen = (self.seen + 1) & 0xFFFF
        return struct.unpack_from("<I", self.page.bytes, entry)[0]


class Registers:
    """The transport's registers (virtio 1.2, 4.2.2)."""

    def __init__(self, address):
        memory = os.open("/dev/mem", os.O_RDWR | os.O_SYNC)
        self.words = memoryview(mmap.mmap(memory, PAGE, offset=address)).cast("I")

    def __getitem__(self, register):
        return self.words[register // 4]

    def __setitem__(self, register, value):
        self.words[register // 4] = value


class Driver:
    def __init__(self, device, port):
        self.device, self.port = device, port
        for status in (0, 1, 3):
            device[0x70] = status
        for half, features in ((0, 0), (1, 1)):
            device[0x24], device[0x20] = half, features
        device[0x70] = 11
        self.receive = Queue(device, RECEIVE, True)
        self.transmit = Queue(device, TRANSMIT, False)
        self.events = Queue(device, EVENTS, True)
        device[0x70] = 15
        self.cid = device[0x100]
        for number in range(SIZE):
            self.receive.offer(number)

    def send(self, op, payload=b""):
        header = (self.cid, HOST, OUR_PORT, self.port, len(payload), 1, op, 0, PAGE, 0)
        packet = HEADER.pack(*header) + payload
        self.transmit.buffers[0].bytes[:len(packet)] = packet
        self.transmit.offer(0, len(packet))
        assert self.transmit.used() == 0

    def hear(self):
        """The next packet: what it is, and how large a buffer its sender has for us."""
        number = self.receive.used()
        header = HEADER.unpack_from(self.receive.buffers[number].bytes)
        self.receive.offer(number)
        return header[6], header[8]


def main(port):
    address, name = unbound()
    driver = Driver(Registers(address), port)
    driver.send(REQUEST)
    op, room = driver.hear()
    assert op == RESPONSE, op
    sent, payload = 0, b"g" * (PAGE - HEADER.size)
    while op != RESET:
        # What the host says of its room is not listened to.
        driver.send(READ_WRITE, payload)
        sent += len(payload)
        while driver.receive.has_used() and op != RESET:
            op, _ = driver.hear()
    print("reset", room, sent, driver.device[0x70])
    driver.device[0x70] = 0
    with open("/sys/bus/platform/drivers/virtio-mmio/bind", "w") as linux:
        linux.write(name)


main(int(sys.argv[1]))
