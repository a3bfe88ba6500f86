"""How the control plane asks a protected deployment: only the very one that it made, whatever the shell says."""

from __future__ import annotations

import ssl
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest
import requests
from support.certificates import make_certificate
from support.web import web_config

from mlflow_flywheel.pipelines.config import ModelRef
from mlflow_flywheel.pipelines.web.exposure import check_certificate
from mlflow_flywheel.plugin.modes.asking import session_for


class Echo(BaseHTTPRequestHandler):
    """Answers with the Authorization header that it got."""

    def do_GET(self) -> None:
        body = self.headers.get("Authorization", "").encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def url(tmp_path: Path) -> Iterator[str]:
    cert, key = make_certificate(tmp_path)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(cert, key)
    server = HTTPServer(("127.0.0.1", 0), Echo)
    server.socket = context.wrap_socket(server.socket, server_side=True)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield f"https://127.0.0.1:{server.server_port}/"
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.mark.filterwarnings("error")
def test_the_token_goes_to_the_holder_of_the_certificate_and_to_nobody_else(
    url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "token").write_text("a-token\n")
    (tmp_path / ".netrc").write_text("machine 127.0.0.1 login me password other\n")
    for name, value in (("NETRC", tmp_path / ".netrc"), ("REQUESTS_CA_BUNDLE", tmp_path / "none.pem")):
        monkeypatch.setenv(name, str(value))
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:1")
    other = make_certificate(tmp_path, "other")
    own = (str(tmp_path / "service.pem"), str(tmp_path / "service.key"))
    for pair, right in ((own, True), (other, False)):
        config = web_config(
            tmp_path,
            ModelRef(name="tiny", version="1", path=""),
            auth_token_file=str(tmp_path / "token"),
            tls_cert=pair[0],
            tls_key=pair[1],
            tls_cert_sha256=check_certificate(*pair),
        )
        with session_for(config) as session:
            if right:
                assert session.get(url, timeout=10).text == "Bearer a-token"
            else:
                with pytest.raises(requests.exceptions.SSLError, match="[Ff]ingerprint"):
                    session.get(url, timeout=10)
