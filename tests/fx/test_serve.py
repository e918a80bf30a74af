"""`fx serve`: labels over HTTP, what is refused, the page, and how the server ends."""

import http.client
import json
import re
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
import urllib.request
import zlib
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
from conftest import Said, answered, encoded, make_image
from PIL import Image

from extract.errors import FxError
from extract.store import FeatureStore
from fx import serve as fx_serve
from fx.options import Options
from fx.serve.app import make_app
from fx.serve.batching import Batcher, ServedModel, open_to_serve
from fx.serve.limits import Limits
from fx.serve.serving import Server
from fx.stages.fit_head import fit_head_on_store
from fx.stages.predict import predict_images

Fx = Callable[..., Said]
Files = Sequence[tuple[str, bytes]]
MB = 2**20


def silent(what: str) -> Callable[[int, int], None]:
    return lambda done, total: None


class Client:
    """A client of a server on this machine."""

    def __init__(self, port: int) -> None:
        self.port = port
        self.url = f"http://127.0.0.1:{port}/"

    def ask(
        self, method: str, path: str, body: Any = None, headers: dict[str, str] | None = None
    ) -> tuple[int, Any, dict[str, str]]:
        """Status, content and headers of an answer."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        try:
            connection.request(method, path, body, headers or {})
            answer = connection.getresponse()
            content = answer.read()
            is_json = answer.getheader("content-type") == "application/json"
            return (
                answer.status,
                json.loads(content) if is_json else content.decode(),
                dict(answer.getheaders()),
            )
        finally:
            connection.close()

    def predict(self, files: Files, query: str = "") -> tuple[int, Any]:
        """Send files as a form."""
        kind, body = form(files)
        return self.ask("POST", f"/predict{query}", body, {"Content-Type": kind})[:2]

    def metric(self, name: str) -> float:
        """The value of a metric, with its labels as Prometheus writes them."""
        told = self.ask("GET", "/metrics")[1]
        return sum(float(line.split()[-1]) for line in told.splitlines() if line.startswith(name))


def form(files: Files, boundary: str = "---b", more: str = "") -> tuple[str, bytes]:
    """The content type and body of a form."""
    parts = [
        f'--{boundary}\r\nContent-Disposition: form-data; name="images"; filename="{name}"\r\n'
        f"Content-Type: image/png\r\n\r\n".encode()
        + data
        for name, data in files
    ]
    return (
        f"multipart/form-data; boundary={boundary}",
        b"\r\n".join([*parts, f"--{boundary}--\r\n{more}".encode()]),
    )


@contextmanager
def serving(model: ServedModel, **limits: int) -> Iterator[Client]:
    """A server in a thread of this process."""
    begun = threading.Event()
    with socket.create_server(("127.0.0.1", 0)) as listening, Batcher(model) as batcher:
        chosen = Limits(**limits)
        server = Server(make_app("a model", batcher, chosen), chosen, begun.set)
        thread = threading.Thread(target=server.run, args=([listening],))
        thread.start()
        assert begun.wait(60)
        try:
            yield Client(listening.getsockname()[1])
        finally:
            server.should_exit = True
            thread.join(60)
        assert not thread.is_alive()


@pytest.fixture(scope="module")
def head(store: FeatureStore, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A head on the features of `images`."""
    options = Options(store=store.path, out=tmp_path_factory.mktemp("runs"))
    return Path(fit_head_on_store("logreg", options, begin=silent).path)


@pytest.fixture(scope="module")
def served(head: Path, store: FeatureStore) -> ServedModel:
    return open_to_serve(head, Options(max_image_mb=64, store=store.path), silent)


@pytest.fixture(scope="module")
def client(served: ServedModel) -> Iterator[Client]:
    with serving(served, request_mb=4, images=32, timeout=20) as one:
        yield one


@pytest.fixture
def waiting() -> Iterator[tuple[ServedModel, threading.Event]]:
    """A model that answers once an event is set."""
    event = threading.Event()

    def features(images: Sequence[Any]) -> np.ndarray:
        event.wait(60)
        return np.tile(np.float32([0.25, 0.75]), (len(images), 1))

    yield ServedModel(("no", "yes"), lambda data: data, features, lambda rows: rows, 16), event
    event.set()


PNG = encoded(make_image(0, 1))


def header_of_png(width: int, height: int) -> bytes:
    """A PNG that says to be large and is not."""
    body = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunks = [(b"IHDR", body), (b"IDAT", zlib.compress(b"\0" * 1000)), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        for kind, data in chunks
    )


# --- what is answered -----------------------------------------------------------------------


def test_answers_are_those_of_fx_predict_in_the_order_of_the_files(
    client: Client, head: Path, images: Path
) -> None:
    wanted = predict_images(head, images, Options(), begin=silent)
    files = [(one.path, (images / one.path).read_bytes()) for one in wanted.predictions][::3]
    status, found = client.predict(files, "?top=2&probabilities=true")
    assert status == 200
    assert [one["path"] for one in found["predictions"]] == [name for name, _ in files]
    for one, other in zip(found["predictions"], wanted.predictions[::3], strict=True):
        assert one["label"] == other.label == one["top"][0]["label"]
        assert one["probability"] == pytest.approx(other.probability, abs=1e-5)
        assert len(one["top"]) == 2
        assert sum(one["probabilities"].values()) == pytest.approx(1)


def test_an_image_may_be_the_body_itself(client: Client) -> None:
    _, of_form = client.predict([("a.png", PNG)])
    status, found, _ = client.ask("POST", "/predict", PNG, {"Content-Type": "image/png"})
    assert status == 200
    assert found["predictions"][0]["probability"] == of_form["predictions"][0]["probability"]
    assert len(found["predictions"][0]["top"]) == 3


def test_an_unreadable_image_costs_the_others_nothing(client: Client) -> None:
    files = [("a.png", PNG), ("b.png", PNG[:-40]), ("c.txt", b"hello"), ("d.png", b"")]
    status, found = client.predict([*files, ("e.png", PNG)])
    assert status == 200
    said = [one.get("error", one.get("label")) for one in found["predictions"]]
    assert said[0] == said[4]
    assert "truncated" in said[1]
    assert "not a JPEG, PNG" in said[2]
    assert said[3] == "empty file"
    assert client.predict(files[1:])[0] == 422


def test_images_of_many_requests_are_classified_together(
    waiting: tuple[ServedModel, threading.Event],
) -> None:
    model, event = waiting
    with serving(model) as client, ThreadPoolExecutor(24) as pool:
        asked = [pool.submit(client.predict, [("a", b"a")]) for _ in range(24)]
        until = time.monotonic() + 30
        while client.metric("fx_images_under_way") < 24:
            assert time.monotonic() < until
        event.set()
        assert {one.result()[0] for one in asked} == {200}
        # one began before the others were there, and then at most 16 at once
        assert client.metric("fx_batch_images_sum") == 24
        assert client.metric("fx_batch_images_count") <= 4


def test_an_answer_is_explained_by_a_heat_map_and_the_nearest_training_images(
    client: Client, images: Path
) -> None:
    data = (images / "b" / "003.png").read_bytes()
    kind, body = form([("a.png", data)])
    status, found, _ = client.ask("POST", "/explain", body, {"Content-Type": kind})
    assert status == 200
    (said,) = client.predict([("a.png", data)])[1]["predictions"]
    assert found["label"] == said["label"]
    assert found["heat_map"].startswith("data:image/jpeg;base64,")
    # itself among them: it was trained on; where it lies is not told
    first = found["nearest"][0]
    assert (first["path"], first["label"]) == ("003.png", "b")
    assert first["distance"] == pytest.approx(0, abs=1e-5)
    assert "data:image/jpeg;base64," in first["image"]
    kind, body = form([("a.png", PNG[:-40])])
    status, content, _ = client.ask("POST", "/explain", body, {"Content-Type": kind})
    assert (status, "truncated" in content["detail"]) == (422, True)
    kind, body = form([("a.png", PNG)] * 2)
    assert client.ask("POST", "/explain", body, {"Content-Type": kind})[0] == 413


def test_without_explanations_there_is_no_path_to_them(
    waiting: tuple[ServedModel, threading.Event],
) -> None:
    with serving(waiting[0]) as client:
        assert client.ask("POST", "/explain", PNG, {"Content-Type": "image/png"})[0] == 404
        assert "data-explains" not in client.ask("GET", "/")[1]
        assert "/explain" not in client.ask("GET", "/openapi.json")[1]["paths"]


def test_what_monitors_ask_for_is_told(client: Client) -> None:
    status, found, _ = client.ask("GET", "/healthz")
    assert (status, found) == (200, {"status": "ok", "model": "a model", "classes": 3})
    before = client.metric('fx_requests_total{path="/predict",status="415"}')
    client.ask("POST", "/predict", b"{}", {"Content-Type": "application/json"})
    assert client.metric('fx_requests_total{path="/predict",status="415"}') == before + 1
    assert client.metric("fx_images_under_way") == 0
    assert client.metric("process_resident_memory_bytes") > 50 * MB
    api = client.ask("GET", "/openapi.json")[1]
    asked = api["paths"]["/predict"]["post"]
    assert set(asked["requestBody"]["content"]) == {"multipart/form-data", "image/*"}
    assert {"200", "408", "413", "415", "422", "503", "504"} <= set(asked["responses"])


# --- what is refused ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "body", "status", "said"),
    [
        ("application/json", b"{}", 415, "got application/json"),
        ("", b"x", 415, "no content type"),
        ("multipart/form-data", b"x", 400, "Missing boundary"),
        ("multipart/form-data; boundary=b", b"no form", 400, "Invalid multipart data"),
        ("multipart/form-data; boundary=b", b"--b--\r\n", 422, "no file"),
        (*form([("", b"")]), 422, "no file"),
        (*form([(f"{n}.png", b"x") for n in range(10_000)]), 413, "more than 32 images"),
        ("image/png", b"x" * (4 * MB + 1), 413, "more than 4 MB"),
        (*form([("a.png", b"x" * 4 * MB)]), 413, "more than 4 MB"),
    ],
    ids=[
        *("another type", "no type", "no boundary", "no form", "an empty form"),
        *("nothing chosen", "10,000 files", "a large image", "a large form"),
    ],
)
def test_bodies_that_are_not_read_are_refused_with_the_reason(
    kind: str, body: bytes, status: int, said: str, client: Client
) -> None:
    found, content, _ = client.ask("POST", "/predict", body, {"Content-Type": kind} if kind else {})
    assert (found, said in content["detail"]) == (status, True), content
    assert client.predict([("a.png", PNG)])[0] == 200


def test_a_body_of_unknown_length_is_counted_as_it_comes(client: Client) -> None:
    chunks = (b"x" * MB for _ in range(64))
    status, content, _ = client.ask("POST", "/predict", chunks, {"Content-Type": "image/png"})
    assert (status, content["detail"]) == (413, "the body has more than 4 MB")


def test_images_that_would_be_huge_are_refused_by_their_header(client: Client) -> None:
    process = psutil.Process()
    before = process.memory_info().rss
    bombs = [("bomb.png", header_of_png(60_000, 60_000))] * 32
    begun = time.monotonic()
    status, content = client.predict(bombs)
    assert status == 422
    said = {one["error"] for one in content["predictions"]}
    assert said == {
        "too large: 60,000 by 60,000 pixels take 10,300 MB; the limit is 64 MB as 8-bit RGB"
    }
    assert time.monotonic() - begun < 5
    assert process.memory_info().rss - before < 100 * MB


def test_no_more_images_wait_than_the_queue_holds(
    waiting: tuple[ServedModel, threading.Event],
) -> None:
    model, event = waiting
    with serving(model, queue=20) as client, ThreadPoolExecutor(1) as pool:
        first = pool.submit(client.predict, [("a", b"a")] * 15)
        until = time.monotonic() + 30
        while client.metric("fx_images_under_way") < 15:
            assert time.monotonic() < until
        kind, body = form([("a", b"a")] * 6)
        status, content, headers = client.ask("POST", "/predict", body, {"Content-Type": kind})
        assert (status, headers["retry-after"]) == (503, "1")
        assert content["detail"] == "too many images wait; try again"
        event.set()
        assert first.result()[0] == 200
        assert client.predict([("a", b"a")] * 6)[0] == 200


def test_an_answer_that_takes_too_long_is_given_up(
    waiting: tuple[ServedModel, threading.Event],
) -> None:
    model, event = waiting
    with serving(model, timeout=1) as client:
        status, content = client.predict([("a", b"a")] * 3)
        assert (status, content["detail"]) == (504, "no answer within 1 s")
        assert client.metric("fx_images_under_way") == 0
        event.set()
        assert client.predict([("a", b"a")])[0] == 200


@pytest.mark.parametrize(
    "sent", [b"", b"POST /predict HT", b"POST /predict HTTP/1.1\r\nHost: a\r\n"]
)
def test_a_connection_without_a_whole_head_is_closed(
    sent: bytes, waiting: tuple[ServedModel, threading.Event]
) -> None:
    with (
        serving(waiting[0], timeout=1) as client,
        socket.create_connection(("127.0.0.1", client.port), timeout=30) as connection,
    ):
        connection.sendall(sent)
        begun = time.monotonic()
        assert connection.recv(1) == b""
        assert time.monotonic() - begun < 5


def test_a_body_that_is_slow_is_not_waited_for(
    waiting: tuple[ServedModel, threading.Event],
) -> None:
    kind, body = form([("a.png", PNG)])
    head = f"POST /predict HTTP/1.1\r\nHost: a\r\nContent-Type: {kind}\r\n"
    with (
        serving(waiting[0], timeout=1) as client,
        socket.create_connection(("127.0.0.1", client.port), timeout=30) as connection,
    ):
        connection.sendall(f"{head}Content-Length: {len(body)}\r\n\r\n".encode())
        begun = time.monotonic()
        with connection.makefile("rb") as answer:
            for byte in body[:8]:
                connection.send(bytes([byte]))
                time.sleep(0.2)
            assert answer.readline() == b"HTTP/1.1 408 Request Timeout\r\n"
            assert b"the body was not there within 1 s" in answer.read()
        assert time.monotonic() - begun < 8


def test_more_connections_than_allowed_are_told_so(
    waiting: tuple[ServedModel, threading.Event],
) -> None:
    with serving(waiting[0], connections=4) as client:
        held = [socket.create_connection(("127.0.0.1", client.port)) for _ in range(4)]
        assert client.ask("GET", "/healthz")[0] == 503
        for one in held:
            one.close()
        time.sleep(0.2)
        assert client.ask("GET", "/healthz")[0] == 200


def test_all_bodies_together_are_bounded(waiting: tuple[ServedModel, threading.Event]) -> None:
    model, event = waiting
    event.set()
    with serving(model, request_mb=1) as client:
        kind, body = form([("a.png", b"x" * (MB - 1000))])
        request = f"POST /predict HTTP/1.1\r\nHost: a\r\nContent-Type: {kind}\r\n"
        request += f"Content-Length: {len(body)}\r\n\r\n"
        held: list[socket.socket] = []
        while (status := client.predict([("a.png", b"x" * (MB - 1000))])[0]) == 200:
            held.append(socket.create_connection(("127.0.0.1", client.port)))
            held[-1].sendall(request.encode() + body[:-20])
            assert len(held) < 20
        assert status == 503
        for one in held:
            one.close()
        until = time.monotonic() + 30
        while client.predict([("a.png", b"x" * (MB - 1000))])[0] == 503:
            assert time.monotonic() < until


def test_limits_and_models_that_make_no_sense_are_refused(tmp_path: Path, fx: Fx) -> None:
    with pytest.raises(FxError, match="`queue` must be at least 1; got 0"):
        Limits(queue=0)
    assert "no model at nothing" in fx("serve", "nothing", "--port", 0).err
    assert "exported files are not served" in fx("serve", "model.onnx", "--port", 0).err
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        said = fx("serve", "nothing", "--port", port)
    assert said.err == (
        f"fx: error: cannot listen at --port {port} of 127.0.0.1 (Address already in use); "
        "give another\n"
    )


def test_without_the_extra_the_line_that_installs_it_is_named(
    monkeypatch: pytest.MonkeyPatch, fx: Fx
) -> None:
    monkeypatch.setattr(fx_serve, "NEEDED", ("fastapi", "not_there"))
    assert fx("serve", "nothing").err == (
        "fx: error: serving takes not_there, not installed here: pip install 'fx-images[serve]'\n"
    )


# --- how it begins and ends -----------------------------------------------------------------


@pytest.fixture
def command(head: Path) -> Iterator[Callable[..., tuple[subprocess.Popen[str], dict[str, Any]]]]:
    """Start `fx serve` as a process; gives it, and what it printed."""
    started: list[subprocess.Popen[str]] = []

    def start(*words: str) -> tuple[subprocess.Popen[str], dict[str, Any]]:
        process = subprocess.Popen(
            [
                sys.executable,
                "-m",
                "fx",
                "serve",
                head,
                "--port=0",
                "--json",
                "--no-explain",
                *words,
            ],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        started.append(process)
        lines: list[str] = []
        for line in process.stdout or []:
            lines.append(line)
            if line == "}\n":
                break
        return process, json.loads("".join(lines))

    yield start
    for process in started:
        process.kill()
        process.communicate()


@pytest.mark.parametrize(
    "number", [signal.SIGTERM, pytest.param(signal.SIGINT, marks=pytest.mark.slow)]
)
def test_at_a_signal_requests_under_way_are_answered_and_no_others(
    number: signal.Signals, command: Callable[..., tuple[subprocess.Popen[str], dict[str, Any]]]
) -> None:
    process, told = command()
    port = int(told["url"].rstrip("/").rpartition(":")[2])
    assert (told["local"], told["classes"]) == (True, ["a", "b", "c"])
    # a site whose name leads here, in a browser of this machine, is not answered
    for name, status in {"localhost": 200, f"127.0.0.1:{port}": 200, "a.site": 400}.items():
        assert Client(port).ask("GET", "/healthz", headers={"Host": name})[0] == status
    kind, body = form([(f"{n}.png", PNG) for n in range(64)])
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    connection.putrequest("POST", "/predict")
    connection.putheader("Content-Type", kind)
    connection.putheader("Content-Length", str(len(body)))
    connection.endheaders(body[:-100])
    time.sleep(0.3)
    process.send_signal(number)
    # longer than other commands are given
    time.sleep(1.5)
    assert process.poll() is None
    with pytest.raises(OSError, match="refused"):
        socket.create_connection(("127.0.0.1", port))
    connection.send(body[-100:])
    answer = connection.getresponse()
    assert answer.status == 200
    assert len(json.loads(answer.read())["predictions"]) == 64
    out, err = process.communicate(timeout=20)
    assert (process.returncode, out, err) == (128 + number, "", "fx: ended by a signal\n")


@pytest.mark.skipif(not socket.has_ipv6, reason="no IPv6 here")
def test_a_server_at_an_ipv6_address_answers_to_its_own_url(
    command: Callable[..., tuple[subprocess.Popen[str], dict[str, Any]]],
) -> None:
    with socket.socket(socket.AF_INET6) as trial:
        try:
            trial.bind(("::1", 0))
        except OSError:
            pytest.skip("no IPv6 loopback here")
    _, told = command("--host", "::1")
    with urllib.request.urlopen(f"{told['url']}healthz", timeout=30) as answer:
        assert answer.status == 200


def test_who_can_reach_it_is_said_and_a_second_signal_ends_it_at_once(
    command: Callable[..., tuple[subprocess.Popen[str], dict[str, Any]]],
) -> None:
    process, told = command("--host", "0.0.0.0")
    assert (told["local"], told["explains"]) == (False, False)
    port = int(told["url"].rstrip("/").rpartition(":")[2])
    with socket.create_connection(("127.0.0.1", port)) as connection:
        connection.sendall(b"POST /predict HTTP/1.1\r\nHost: a\r\nContent-Type: image/png\r\n")
        connection.sendall(b"Content-Length: 10\r\n\r\n")
        time.sleep(0.3)
        process.send_signal(signal.SIGTERM)
        time.sleep(0.3)
        process.send_signal(signal.SIGTERM)
        begun = time.monotonic()
        assert process.wait(20) == 143
        assert time.monotonic() - begun < 2
    assert process.communicate()[1] == (
        f"fx: warning: whoever reaches {told['url']} can use it: there is no password, and no "
        "encryption\nfx: ended by a signal\n"
    )


# --- under load -----------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_whoever_sends_what_is_answered_in_time_and_memory(
    command: Callable[..., tuple[subprocess.Popen[str], dict[str, Any]]],
) -> None:
    process, told = command("--timeout", "10")
    port = int(told["url"].rstrip("/").rpartition(":")[2])
    client = Client(port)
    (answering,) = psutil.Process(process.pid).children()
    assert client.predict([("a.png", PNG)])[0] == 200
    before, peak, ended = answering.memory_info().rss, 0, threading.Event()

    def watch() -> None:
        nonlocal peak
        while not ended.wait(0.02):
            peak = max(peak, answering.memory_info().rss)

    watching = threading.Thread(target=watch)
    watching.start()
    # as large as is let in, of a few kilobytes
    flat = Image.new("RGB", (8_100, 8_100))
    noise = np.random.default_rng(0).bytes(30 * MB)
    hostile: list[list[tuple[str, bytes]]] = [
        [("bomb.png", encoded(flat))] * 8,
        [("bomb.tif", encoded(flat, "TIFF", compression="tiff_deflate"))] * 4,
        [("scans.jpg", encoded(flat, "JPEG", progressive=True))] * 8,
        [("bomb.webp", encoded(flat.resize((4_000, 4_000)), "WEBP"))] * 8,
        [("header.png", header_of_png(60_000, 60_000))] * 64,
        [("cut.png", PNG[:-40])] * 64,
        [(f"{n}.png", b"x") for n in range(10_000)],
        [("noise", noise)],
    ]
    with ThreadPoolExecutor(64) as pool:
        found = list(pool.map(client.predict, [files for files in hostile for _ in range(8)]))
    assert {status for status, _ in found} <= {200, 413, 422, 503, 504}
    # slow ones, beside which others are answered
    head = f"POST /predict HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: {form([])[0]}\r\n"
    held = [socket.create_connection(("127.0.0.1", port)) for _ in range(300)]
    for one in held:
        one.sendall(f"{head}Content-Length: 1000\r\n\r\n--".encode())
    begun = time.monotonic()
    assert client.predict([("a.png", PNG)])[0] == 200
    assert time.monotonic() - begun < 5
    assert {one.recv(20) for one in held} == {b"HTTP/1.1 408 Request"}
    ended.set()
    watching.join()
    # eight of the largest bodies, held twice, and what images that are decoded may take
    assert peak - before < 2 * 8 * 32 * MB + 1_536 * MB
    assert client.metric("fx_images_under_way") == 0


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_under_load_there_are_no_errors_and_little_is_lost(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fx: Fx
) -> None:
    monkeypatch.chdir(tmp_path)
    for number, photo in enumerate(sorted(photos.iterdir())):
        folder = Path("data", "ab"[number % 2])
        folder.mkdir(parents=True, exist_ok=True)
        (folder / photo.name).symlink_to(photo)
    answered(fx, "extract", "data")
    path = answered(fx, "fit-head", "centroid")["path"]
    words = ["--concurrency", "64", "--count", "300", "--rounds", "1"]
    script = Path(__file__).parents[2] / "benchmarks" / "serving.py"
    out = subprocess.run(
        [sys.executable, str(script), path, str(photos), *words],
        check=True,
        capture_output=True,
        text=True,
    ).stdout
    assert "errors: 0;" in out
    (row,) = re.findall(r"^ +64 .*", out, re.MULTILINE)
    # CPU an image, in that of fx predict: other programs may be running
    assert float(row.split()[5]) < 1 / 0.8


# --- the page -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("width", "scheme"), [(1280, "light"), (390, "dark")], ids=["desktop", "phone in the dark"]
)
def test_on_the_page_images_are_chosen_and_labelled(
    browser: Any, client: Client, images: Path, tmp_path: Path, width: int, scheme: str
) -> None:
    context = browser.new_context(viewport={"width": width, "height": 800}, color_scheme=scheme)
    page = context.new_page()
    told: list[str] = []
    page.on("console", lambda message: told.append(message.text))
    page.on("pageerror", lambda error: told.append(str(error)))
    # from the start: chromium shows a dialogue of its own until it knows of the listener
    choosers: list[Any] = []
    page.on("filechooser", lambda chooser: choosers.append(chooser))
    page.goto(client.url)
    broken = tmp_path / "<b>broken.png"
    broken.write_bytes(PNG[:-40])
    files = [*sorted(images.glob("*/*.png"))[:40], broken]
    # by the keyboard: the first thing on the page is the choice of files
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.id") == "files"
    page.keyboard.press("Enter")
    until = time.monotonic() + 20
    while not choosers:
        page.wait_for_timeout(50)
        assert time.monotonic() < until
    choosers[0].set_files(files)
    page.get_by_role("status").get_by_text("40 of 41 images labelled.").wait_for()
    items = page.locator("#images > li")
    assert items.count() == 41
    assert items.nth(3).locator("h3").text_content() == files[3].name
    answer = client.predict([("a", files[3].read_bytes())])[1]["predictions"][0]
    assert items.nth(3).locator(".answer").text_content() == answer["label"]
    assert items.nth(3).locator("tbody td").first.text_content() == f"{answer['probability']:.3f}"
    assert "Not labelled: " in items.nth(40).text_content()
    assert items.nth(40).locator("h3").text_content() == "<b>broken.png"
    assert page.evaluate("document.activeElement.id") == "files"
    # on, by the keyboard, to why
    page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    items.first.locator(".why .images").wait_for()
    assert items.first.locator(".why figure").count() == 5
    assert items.first.locator(".heat").evaluate("one => one.naturalWidth") == 32
    assert page.evaluate("document.activeElement.className") == "why"
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert told == []
    assert axe_finds(page) == []
    context.close()


def test_on_the_page_images_can_be_dropped(browser: Any, client: Client) -> None:
    page = browser.new_page()
    page.goto(client.url)
    page.evaluate(
        """bytes => {
            const data = new DataTransfer();
            data.items.add(new File([new Uint8Array(bytes)], "dropped.png", {type: "image/png"}));
            for (const name of ["dragover", "drop"])
                document.body.dispatchEvent(
                    new DragEvent(name, {dataTransfer: data, bubbles: true, cancelable: true}));
        }""",
        list(PNG),
    )
    page.get_by_role("status").get_by_text("1 of 1 image labelled.").wait_for()
    assert page.locator("#images h3").text_content() == "dropped.png"
    page.close()


def test_names_on_the_page_are_text(
    browser: Any, waiting: tuple[ServedModel, threading.Event]
) -> None:
    classes = ("<script>alert(1)</script>", '"><img src=x onerror=alert(2)>')
    hostile = replace(waiting[0], classes=classes, probabilities=lambda rows: 1 - rows)
    waiting[1].set()
    with serving(hostile) as client:
        page = browser.new_page()
        asked: list[str] = []
        page.on("request", lambda request: asked.append(request.url))
        page.on("dialog", lambda dialog: pytest.fail("a script ran"))
        page.goto(client.url)
        page.set_input_files("#files", {"name": "<i>.png", "mimeType": "image/png", "buffer": PNG})
        page.get_by_text("1 of 1 image labelled.").wait_for()
        assert page.locator(".answer").text_content() == classes[0]
        assert classes[1] in page.locator(".lead").text_content()
        assert all(url.startswith((client.url, "blob:", "data:")) for url in asked)
        page.close()


def axe_finds(page: Any) -> list[Any]:
    """What axe would have mended."""
    axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="no axe here")
    found = axe.Axe().run(page, options={"iframes": False}).response["violations"]
    return [(one["id"], node["html"][:120]) for one in found for node in one["nodes"]]
