"""A local S3 server, moto's, which can be told to refuse requests or to be gone for a while."""

import logging
import threading
from collections import Counter
from collections.abc import Callable, Iterable
from typing import Any

import boto3
from moto.server import DomainDispatcherApplication, create_backend_app
from werkzeug.serving import BaseWSGIServer, make_server

SECRET = "a-secret-that-nothing-may-keep"
READING = ("GET", "HEAD")


class S3Server:
    """A server on a port of this machine, and what it was asked for.

    Attributes
    ----------
    requests : how many of each method
    refuse : given the method, says with which status a request is refused; None for none
    """

    def __init__(self) -> None:
        logging.getLogger("werkzeug").setLevel(logging.ERROR)
        self._app = DomainDispatcherApplication(create_backend_app)
        self.requests: Counter[str] = Counter()
        self.refuse: Callable[[str], int | None] = lambda _: None
        self._port = 0
        self.start()
        self._port = self._server.server_port
        self.client = boto3.client("s3", region_name="us-east-1", **self._access())
        self._buckets = 0

    def start(self) -> None:
        """Answer, on the port of before."""
        self._server: BaseWSGIServer = make_server(
            "127.0.0.1", self._port, self._answer, threaded=True
        )
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Be gone; what was stored stays for the next start."""
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    def new_bucket(self) -> str:
        """Make a bucket, and give its URL."""
        self._buckets += 1
        name = f"bucket-{self._port}-{self._buckets}"
        self.client.create_bucket(Bucket=name)
        return f"s3://{name}"

    @property
    def environment(self) -> dict[str, str]:
        """What a client finds the server by."""
        return {
            "AWS_ENDPOINT_URL": f"http://127.0.0.1:{self._port}",
            "AWS_ACCESS_KEY_ID": "key",
            "AWS_SECRET_ACCESS_KEY": SECRET,
            "AWS_REGION": "us-east-1",
        }

    def _access(self) -> dict[str, str]:
        return {
            "endpoint_url": self.environment["AWS_ENDPOINT_URL"],
            "aws_access_key_id": "key",
            "aws_secret_access_key": SECRET,
        }

    def _answer(self, environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        method = environ["REQUEST_METHOD"]
        self.requests[method] += 1
        status = self.refuse(method)
        if status:
            # a body that is not read would be taken for the next request
            environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
            start_response(f"{status} refused", [("Content-Length", "0")])
            return [b""]
        return self._app(environ, start_response)
