import http.server, socketserver, sys, zlib

nonce = int(sys.argv[1])
posts = {n: ('%09d ' % (n * nonce % 999999937)) * 40 for n in range(100000)}


class App(http.server.BaseHTTPRequestHandler):
    protocol_version = 'HTTP/1.1'

    def do_GET(self):
        page = self.path[1:]
        if page == 'proof':
            checksum = 0
            for post in posts.values():
                checksum = zlib.crc32(post.encode(), checksum)
            return self.answer(str(checksum))
        first = int(page)
        shown = [posts[(first + n) % len(posts)] for n in range(10)]
        self.answer('<h1>%d</h1>' % first + ''.join('<p>%s</p>' % post for post in shown))

    def answer(self, body):
        body = body.encode()
        self.send_response(200)
        self.send_header('Content-Length', str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *words):
        pass


socketserver.UnixStreamServer('/tmp/web', App).serve_forever()
