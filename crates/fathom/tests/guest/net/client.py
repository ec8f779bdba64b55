"""The guest's end of the network tests.

transfer HOST PORT BYTES     downloads and uploads; prints the checksums of both
one-by-one HOST PORT COUNT   connections in sequence
together HOST PORT COUNT     connections at a time
serve PORT                   echoes what one connection says
"""
import http.client, random, socket, sys, zlib

CHUNK = 1 << 20
PATIENCE_S = 600


def transfer(host, port, length):
    connection = http.client.HTTPConnection(host, port, timeout=PATIENCE_S)
    connection.request("GET", f"/noise/{length}")
    response, received, checksum = connection.getresponse(), 0, 0
    while data := response.read(CHUNK):
        received, checksum = received + len(data), zlib.crc32(data, checksum)
    print("down", received, checksum, flush=True)

    noise, sent = random.Random(1), [0]

    def body():
        for _ in range(length // CHUNK):
            data = noise.randbytes(CHUNK)
            sent[0] = zlib.crc32(data, sent[0])
            yield data

    connection = http.client.HTTPConnection(host, port, timeout=PATIENCE_S)
    connection.request("PUT", "/sum", body(), {"Content-Length": str(length)})
    said = connection.getresponse().read().decode()
    assert said == f"{length} {sent[0]}", (said, sent)
    print("up", said, flush=True)


def ask(host, port, number):
    sock = socket.create_connection((host, port), timeout=PATIENCE_S)
    sock.sendall(b"GET /echo/%d HTTP/1.1\r\nHost: host\r\n\r\n" % number)
    return sock


def check(sock, number):
    answer = b""
    while data := sock.recv(4096):
        answer += data
    sock.close()
    assert answer.startswith(b"HTTP/1.1 200 ") and answer.endswith(b"\r\n\r\n%d" % number), answer


def one_by_one(host, port, count):
    for number in range(count):
        check(ask(host, port, number), number)
    print(count)


def together(host, port, count):
    socks = [ask(host, port, number) for number in range(count)]
    for number, sock in enumerate(socks):
        check(sock, number)
    print(count)


def serve(port):
    listener = socket.create_server(("", port))
    print("serving", flush=True)
    sock, _ = listener.accept()
    while data := sock.recv(CHUNK):
        sock.sendall(data)


verb, *words = sys.argv[1:]
if verb == "serve":
    serve(int(words[0]))
else:
    works = {"transfer": transfer, "one-by-one": one_by_one, "together": together}
    works[verb](words[0], int(words[1]), int(words[2]))
