"""The guest's end of the vsock tests.

serve            answers on the ports below until it is killed
call PORT        calls the host and echoes; prints how many bytes came, or why none did
cid              prints the guest's own address
"""
import array, errno, fcntl, resource, select, socket, sys

HOST = 2
ECHO, COUNT, OPEN = 5000, 5001, 5002
CHUNK = 1 << 18
GET_LOCAL_CID = 0x7B9


class Connection:
    """Echoes, or counts and tells the sum after the end."""

    def __init__(self, sock, port):
        self.sock, self.port = sock, port
        self.received, self.pending, self.ended = 0, memoryview(b""), False

    def wants(self):
        if self.pending:
            return select.EPOLLOUT
        return 0 if self.ended else select.EPOLLIN

    def work(self):
        """False when it is over."""
        if not self.pending and not self.ended:
            data = self.sock.recv(CHUNK)
            self.received += len(data)
            self.ended = not data
            if self.port == ECHO:
                self.pending = memoryview(data)
            elif self.ended:
                self.pending = memoryview(b"%d\n" % self.received)
        if self.pending:
            self.pending = self.pending[self.sock.send(self.pending):]
        return bool(self.pending) or not self.ended


class Server:
    def __init__(self):
        self.poll, self.listeners, self.connections = select.epoll(), {}, {}
        for port in (ECHO, COUNT, OPEN):
            sock = socket.socket(socket.AF_VSOCK, socket.SOCK_STREAM)
            sock.bind((socket.VMADDR_CID_ANY, port))
            sock.listen(1000)
            self.listeners[sock.fileno()] = (sock, port)
            self.poll.register(sock, select.EPOLLIN)

    def accept(self, listener, port):
        sock, (cid, _) = listener.accept()
        assert cid == HOST, cid
        if port == OPEN:
            sock.sendall(b"%d\n" % len(self.connections))
            sock.close()
            return
        sock.setblocking(False)
        self.connections[sock.fileno()] = Connection(sock, port)
        self.poll.register(sock, select.EPOLLIN)

    def serve(self, number):
        connection = self.connections[number]
        try:
            if connection.work():
                return self.poll.modify(number, connection.wants())
        except BlockingIOError:
            return
        except OSError as error:
            assert error.errno in (errno.ECONNRESET, errno.EPIPE, errno.ENOTCONN), error
        del self.connections[number]
        connection.sock.close()

    def run(self):
        print("serving", flush=True)
        while True:
            for number, _ in self.poll.poll():
                if number in self.listeners:
                    self.accept(*self.listeners[number])
                elif number in self.connections:
                    self.serve(number)


def call(port):
    sock = socket.socket(socket.AF_VSOCK, socket.SOCK_STREAM)
    try:
        sock.connect((HOST, port))
    except OSError as error:
        print(errno.errorcode[error.errno])
        return
    total = 0
    while data := sock.recv(CHUNK):
        total += len(data)
        sock.sendall(data)
    print(total)


def cid():
    answer = array.array("I", [0])
    with open("/dev/vsock") as device:
        fcntl.ioctl(device, GET_LOCAL_CID, answer)
    print(answer[0])


match sys.argv[1:]:
    case ["serve"]:
        resource.setrlimit(resource.RLIMIT_NOFILE, (4096, 4096))
        Server().run()
    case ["call", port]:
        call(int(port))
    case ["cid"]:
        cid()
