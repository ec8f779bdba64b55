"""A guest's work that knows when it was disturbed: memory with a checksum for each block, a database with sums that never
change, and an echo for the host. What is wrong is written to /tmp/wrong, what is done to /tmp/rounds.
"""
import os, random, socket, sqlite3, threading, time, zlib

ECHO = 5000
BLOCK, BLOCKS = 65536, 128
ACCOUNTS, BALANCE = 2000, 1000


def wrong(what):
    with open("/tmp/wrong", "a") as file:
        print(what, file=file)


class Memory:
    def __init__(self):
        self.blocks = [bytearray(os.urandom(BLOCK)) for _ in range(BLOCKS)]
        self.sums = [zlib.crc32(block) for block in self.blocks]

    def round(self):
        for _ in range(8):
            n = random.randrange(BLOCKS)
            at = random.randrange(BLOCK - 4096)
            self.blocks[n][at : at + 4096] = os.urandom(4096)
            self.sums[n] = zlib.crc32(self.blocks[n])
        for n, block in enumerate(self.blocks):
            if zlib.crc32(block) != self.sums[n]:
                wrong("block %d of memory" % n)


class Bank:
    def __init__(self):
        self.db = sqlite3.connect("/tmp/bank.db")
        self.db.execute("CREATE TABLE account(id INTEGER PRIMARY KEY, balance INTEGER, note BLOB)")
        rows = ((n, BALANCE, os.urandom(200)) for n in range(ACCOUNTS))
        self.db.executemany("INSERT INTO account VALUES(?,?,?)", rows)
        self.db.commit()

    def round(self):
        for _ in range(4):
            giver, taker = random.randrange(ACCOUNTS), random.randrange(ACCOUNTS)
            with self.db:
                self.db.execute("UPDATE account SET balance=balance-1 WHERE id=?", (giver,))
                self.db.execute("UPDATE account SET balance=balance+1 WHERE id=?", (taker,))
        (sum,) = self.db.execute("SELECT sum(balance) FROM account").fetchone()
        (found,) = self.db.execute("PRAGMA integrity_check").fetchone()
        if sum != ACCOUNTS * BALANCE or found != "ok":
            wrong("database: sum %s, %s" % (sum, found))


def echo(sock):
    try:
        while data := sock.recv(1 << 16):
            sock.sendall(data)
    except OSError:
        pass  # Connections end when the machine moves.
    sock.close()


def serve():
    listener = socket.socket(socket.AF_VSOCK, socket.SOCK_STREAM)
    listener.bind((socket.VMADDR_CID_ANY, ECHO))
    listener.listen(16)
    while True:
        sock, _ = listener.accept()
        threading.Thread(target=echo, args=(sock,), daemon=True).start()


def work():
    memory, bank, rounds = Memory(), Bank(), 0
    threading.Thread(target=serve, daemon=True).start()
    while True:
        memory.round()
        bank.round()
        rounds += 1
        with open("/tmp/rounds.new", "w") as file:
            print(rounds, file=file)
        os.rename("/tmp/rounds.new", "/tmp/rounds")


try:
    work()
except BaseException as error:
    wrong(repr(error))
