"""What the benchmarks of a running server share: starting one, streaming from it, and saying which machine it was."""

import asyncio
import contextlib
import datetime
import http.client
import json
import os
import pathlib
import platform
import random
import resource
import signal
import socket
import subprocess
import sys
import tempfile
import time

HERE = pathlib.Path(__file__).resolve().parent
MODELS = pathlib.Path(os.environ.get("XDG_CACHE_HOME") or pathlib.Path.home() / ".cache") / "realm" / "models"
SMOLLM2 = MODELS / "SmolLM2-135M-Instruct.Q4_1.gguf"
ADMIN_TOKEN = "operator-of-the-benchmark-0123456789"
READY_S = 120
WORDS = (
    "river stone window garden letter music winter bridge market forest candle paper island engine silver harbour "
    "teacher morning village circle shadow ladder orange planet mirror valley thunder pocket basket summer button"
).split()


def machine():
    """What the figures are of."""
    info = pathlib.Path("/proc/cpuinfo").read_text(encoding="utf-8")
    facts = dict(line.split(":", 1) for line in info.splitlines() if ":" in line)
    facts = {key.strip(): value.strip() for key, value in facts.items()}
    flags = facts.get("flags", facts.get("Features", "")).split()
    known = [flag for flag in ("avx2", "avx512f", "avx512_vnni", "amx_int8", "asimddp") if flag in flags]
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    name = facts.get("model name", platform.machine())
    return f"{name}, {len(os.sched_getaffinity(0))} cores, {', '.join(known)}, {memory:.0f} GiB, Linux {platform.release().split('-')[0]}"


def commit():
    """The state of this repository."""
    asked = subprocess.run(["git", "-C", HERE, "describe", "--always", "--dirty"], capture_output=True, text=True, check=False)
    return asked.stdout.strip() or "unknown"


def environment():
    """What stands below every table."""
    return f"{datetime.date.today()}, {machine()}; Realm {commit()}"


def prompt(seed, words=64):
    """Words that no other seed gives, so that no server finds the prompt in a cache."""
    chosen = random.Random(seed)
    return " ".join(chosen.choice(WORDS) for _ in range(words))


def percentile(values, share):
    """The value that this share of them does not exceed."""
    return sorted(values)[min(len(values) - 1, int(share * len(values)))] if values else float("nan")


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def ask(port, method, path, body=None, token=None):
    """One request and its JSON or text; an error when the status is not 2xx. A path is sent as the bytes of that file."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=READY_S)
    headers = {"content-type": "application/json"} | ({"authorization": f"Bearer {token}"} if token else {})
    content = body.read_bytes() if isinstance(body, pathlib.Path) else json.dumps(body) if body is not None else None
    connection.request(method, path, content, headers)
    response = connection.getresponse()
    text = response.read().decode()
    connection.close()
    if response.status // 100 != 2:
        raise RuntimeError(f"{method} {path}: {response.status} {text[:300]}")
    return json.loads(text) if text[:1] in "{[" else text


def stop(process):
    """Ends a server that this benchmark started."""
    process.send_signal(signal.SIGTERM)
    try:
        process.wait(10)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


class Realm:
    """A server of its own data folder, on free ports. `with Realm(model) as server`."""

    def __init__(self, model, threads=None, flags=()):
        self.data = tempfile.TemporaryDirectory(prefix="realm-bench-")
        command = [
            os.environ.get("REALM_BIN", "realm"), "serve", "--json", "--listen", "127.0.0.1:0", "--admin-listen", "127.0.0.1:0",
            "--model", str(model), "--model-name", "model", "--data-dir", self.data.name, *flags,
        ] + (["--threads", str(threads)] if threads else [])
        self.log = open(pathlib.Path(self.data.name) / "server.log", "wb")
        env = {key: value for key, value in os.environ.items() if not key.startswith("REALM_")} | {"REALM_ADMIN_TOKEN": ADMIN_TOKEN}
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=self.log, env=env, text=True)
        line = self.process.stdout.readline()
        if not line:
            sys.exit("realm serve did not start:\n" + pathlib.Path(self.log.name).read_text(encoding="utf-8")[-2000:])
        ready = json.loads(line)
        self.port, self.admin_port = (int(ready[key].rsplit(":", 1)[1]) for key in ("url", "admin_url"))

    def __enter__(self):
        return self

    def __exit__(self, *_):
        stop(self.process)
        self.process.stdout.close()
        self.log.close()
        self.data.cleanup()

    def tenant(self, name, **options):
        """Makes a tenant; its key."""
        ask(self.admin_port, "POST", "/admin/v1/tenants", {"name": name, **options}, ADMIN_TOKEN)
        return ask(self.admin_port, "POST", f"/admin/v1/tenants/{name}/keys", {}, ADMIN_TOKEN)["key"]

    def metric(self, name):
        """The sum of a metric over all of its labels."""
        lines = ask(self.admin_port, "GET", "/metrics", token=ADMIN_TOKEN).splitlines()
        return sum(float(line.rsplit(" ", 1)[1]) for line in lines if line.split("{")[0].split(" ")[0] == name)

    def memory_bytes(self):
        """What the process has resident now."""
        status = pathlib.Path(f"/proc/{self.process.pid}/status").read_text(encoding="utf-8")
        return next(int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith("VmRSS"))


class LlamaServer:
    """llama.cpp's server at one setting. `with LlamaServer(...) as server`."""

    def __init__(self, program, model, threads, clients, flash):
        self.port = free_port()
        command = [
            program, "-m", model, "--host", "127.0.0.1", "--port", self.port, "-np", clients, "-c", clients * 512,
            "-t", threads, "-tb", threads, "-fa", flash, "-cb",
        ]
        self.log = tempfile.NamedTemporaryFile(prefix="llama-server-", suffix=".log")
        self.process = subprocess.Popen([str(part) for part in command], stdout=self.log, stderr=self.log)
        until = time.monotonic() + READY_S
        while True:
            with contextlib.suppress(OSError, RuntimeError):
                ask(self.port, "GET", "/health")
                return
            if self.process.poll() is not None or time.monotonic() > until:
                sys.exit(f"{program} did not start:\n" + pathlib.Path(self.log.name).read_text(encoding="utf-8")[-2000:])
            time.sleep(0.05)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        stop(self.process)
        self.log.close()


class Answer:
    """What one streamed request gave: status, times of its pieces of text, and its tokens by the server's own count."""

    def __init__(self):
        self.began = time.monotonic()
        self.status, self.pieces, self.tokens, self.body, self.ended = 0, [], 0, "", self.began

    def gaps(self):
        """Seconds between pieces of text."""
        return [later - earlier for earlier, later in zip(self.pieces, self.pieces[1:])]

    def first_s(self):
        """Seconds until the first piece."""
        return self.pieces[0] - self.began if self.pieces else float("nan")


async def chunks(reader):
    """The body of an answer in the chunked encoding."""
    while size := int((await reader.readline()).split(b";")[0] or b"0", 16):
        yield (await reader.readexactly(size + 2))[:-2]


async def stream(port, path, body, key=None, pieces_max=None):
    """Sends one request and reads its server-sent events to the end, or hangs up after some pieces of text."""
    answer = Answer()
    reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=1 << 20)
    try:
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        head = f"POST {path} HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\ncontent-length: {len(content)}\r\nconnection: close\r\n"
        writer.write((head + (f"authorization: Bearer {key}\r\n" if key else "") + "\r\n").encode() + content)
        # An answer may come before the whole body was taken, and close the connection.
        sending = asyncio.ensure_future(writer.drain())
        lines = (await reader.readuntil(b"\r\n\r\n")).decode().lower().split("\r\n")
        with contextlib.suppress(OSError):
            await sending
        answer.status = int(lines[0].split()[1])
        if answer.status != 200 or not any("chunked" in line for line in lines):
            answer.body = (await reader.read()).decode()
            return answer
        buffer = b""
        async for chunk in chunks(reader):
            now = time.monotonic()
            *events, buffer = (buffer + chunk).split(b"\n\n")
            for event in events:
                # Reading every event as JSON would take the processor from the server: that is done once, for the usage.
                if b'"usage":{' in event:
                    answer.tokens = json.loads(event.removeprefix(b"data:"))["usage"]["completion_tokens"]
                elif (b'"content":"' in event and b'"content":""' not in event) or (b'"text":"' in event and b'"text":""' not in event):
                    answer.pieces.append(now)
            if pieces_max and len(answer.pieces) >= pieces_max:
                return answer
        return answer
    finally:
        answer.ended = time.monotonic()
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()


def chat(seed_or_text, tokens, **more):
    """A streamed chat request at temperature 0. A number stands for a prompt of 64 words."""
    text = prompt(seed_or_text) if isinstance(seed_or_text, int) else seed_or_text
    return {
        "model": "model", "messages": [{"role": "user", "content": text}], "max_tokens": tokens, "temperature": 0,
        "stream": True, "stream_options": {"include_usage": True}, **more,
    }


def own_processor_s():
    """Processor time of the generator itself so far."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def write_json(path, title, result):
    """The whole result in a file."""
    whole = {"title": title, "environment": environment(), **result}
    pathlib.Path(path).write_text(json.dumps(whole, indent=1) + "\n", encoding="utf-8")


def report(title, result, as_json=None):
    """Prints a table of figures by name, and writes them as JSON where asked."""
    print(f"### {title}\n\n| what | figure |\n|---|---|")
    for what, figure in result.items():
        shown = f"{figure:.1f}" if isinstance(figure, float) else figure
        print(f"| {what.replace('_', ' ')} | {shown} |")
    print(f"\n{environment()}\n")
    if as_json:
        write_json(as_json, title, result)
