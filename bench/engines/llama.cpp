#!/usr/bin/env python3
"""llama.cpp behind the contract of `realm bench --json`: the same options, the same keys.

Every figure is the better one of flash attention off and on. The binaries are `llama-bench` and `llama-batched-bench`,
looked for in $LLAMA_CPP_BIN, then where `--build` puts them; `--build` fetches and builds mainline llama.cpp for this
machine (cmake and a C++ compiler are needed).
"""

import argparse
import json
import os
import pathlib
import statistics
import subprocess
import sys
import tarfile
import tempfile

# The source distribution on PyPI that carries llama.cpp whole.
PACKAGE = "llama-cpp-python==0.3.36"
CACHE = pathlib.Path(os.environ.get("XDG_CACHE_HOME") or pathlib.Path.home() / ".cache") / "realm" / "llama.cpp"


def build():
    """Fetches the sources and builds the two programs natively."""
    CACHE.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run([sys.executable, "-m", "venv", f"{folder}/venv"], check=True)
        fetch = ["download", "--quiet", "--no-deps", "--no-binary", ":all:", "--no-build-isolation", "-d", folder, PACKAGE]
        tools = ["install", "--quiet", "scikit-build-core", "flit-core", "hatchling"]
        for command in (tools, fetch):
            subprocess.run([f"{folder}/venv/bin/pip", *command], check=True)
        archive = next(pathlib.Path(folder).glob("*.tar.gz"))
        with tarfile.open(archive) as tar:
            tar.extractall(CACHE / "source", filter="data")
    source = next((CACHE / "source").glob("*/vendor/llama.cpp"))
    options = ["-DGGML_NATIVE=ON", "-DCMAKE_BUILD_TYPE=Release", "-DLLAMA_CURL=OFF", "-DLLAMA_BUILD_TESTS=OFF", "-DLLAMA_OPENSSL=OFF"]
    subprocess.run(["cmake", "-S", source, "-B", CACHE / "build", *options], check=True)
    targets = ["--target", "llama-bench", "llama-batched-bench"]
    subprocess.run(["cmake", "--build", CACHE / "build", "-j", *targets], check=True)


def program(name):
    """The path of one of the programs."""
    folder = pathlib.Path(os.environ.get("LLAMA_CPP_BIN") or CACHE / "build" / "bin")
    path = folder / name
    if not path.is_file():
        sys.exit(f"{path} is missing: set LLAMA_CPP_BIN to the folder that has it, or run {sys.argv[0]} --build")
    return path


def output(command):
    """What a program prints, or its complaint."""
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        sys.exit(f"{command[0]} failed:\n{done.stderr[-2000:]}")
    return done.stdout


def bench(options, **asked):
    """Medians by flash attention of one llama-bench run."""
    arguments = [part for key, value in asked.items() for part in (f"-{key}", value)]
    command = [program("llama-bench"), "-m", options.model, "-t", options.threads, "-r", options.reps, "-fa", "0,1", "-o", "json"]
    return json.loads(output(command + arguments))


def best(rows):
    """The better of the two, by its median."""
    return max((sorted(row["samples_ts"]) for row in rows), key=statistics.median)


def batched(options):
    """Medians of decoding in batches: [{rows, decode_tok_s}]."""
    if not options.rows:
        return []
    most = max(options.rows) * (options.context + options.decode)
    rates = {}
    for flash in ("off", "on"):
        for _ in range(options.reps):
            text = output([
                program("llama-batched-bench"), "-m", options.model, "-t", options.threads, "-c", max(most, 512), "-fa", flash,
                "-npp", options.context, "-ntg", options.decode, "-npl", ",".join(map(str, options.rows)), "--output-format", "jsonl",
            ])
            for line in text.splitlines():
                if line.startswith("{"):
                    row = json.loads(line)
                    rates.setdefault((row["pl"], flash), []).append(row["speed_tg"])
    return [
        {"rows": rows, "decode_tok_s": max(statistics.median(rates[rows, flash]) for flash in ("off", "on"))}
        for rows in options.rows
    ]


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--build", action="store_true", help="fetch and build llama.cpp, and end")
    parser.add_argument("--model")
    parser.add_argument("--prefill", type=int, default=512)
    parser.add_argument("--decode", type=int, default=64)
    parser.add_argument("--context", type=int, default=16)
    parser.add_argument("--rows", type=lambda text: [int(rows) for rows in text.split(",")], default=[])
    parser.add_argument("--threads", type=int, default=0)
    parser.add_argument("--reps", type=int, default=5)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    if options.build:
        return build()
    if not options.model:
        parser.error("--model is needed")
    options.threads = options.threads or len(os.sched_getaffinity(0))
    prefill = bench(options, p=options.prefill, n=0)
    decode = bench(options, p=0, n=options.decode, d=options.context)
    report = {
        "engine": "llama.cpp",
        "version": f"{prefill[0]['build_commit']} ({PACKAGE})",
        "file": options.model,
        "threads": options.threads,
        "reps": options.reps,
        "prefill_tokens": options.prefill,
        "decode_tokens": options.decode,
        "context_tokens": options.context,
        "prefill_tok_s": statistics.median(best(prefill)),
        "decode_tok_s": statistics.median(best(decode)),
        "batched": batched(options),
    }
    if options.json:
        return print(json.dumps(report))
    for key, value in report.items():
        print(f"{key:16}{value}")


if __name__ == "__main__":
    main()
