"""Real hedge programs on loopback, for Python's unittest.

    from hedge_harness import DaemonTest, main

    class Election(DaemonTest):
        def test_leader(self):
            cluster = self.cluster(3)
            self.assertIn(cluster.leader().id, [n.id for n in cluster.nodes])

Programs come from $HEDGE_BIN (default build/release/bin). Everything a test
makes is below its own temporary directory; $HEDGE_KEEP=1 keeps it. Every
process a test starts is dead when it ends, whatever it ended with. The logs of
the nodes are shown when a test has failed.
"""
import atexit
import fcntl
import functools
import importlib
import json
import os
import pty
import random
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import unittest

# Before grpc is imported: its fork handlers have no business here, where
# processes are only spawned.
os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "0")
os.environ.setdefault("GRPC_VERBOSITY", "NONE")
# A channel nobody waits on reconnects at this pace; it would be 5 s.
os.environ.setdefault("GRPC_CLIENT_CHANNEL_BACKUP_POLL_INTERVAL_MS", "200")
for _name in ("http_proxy", "https_proxy", "grpc_proxy", "all_proxy"):
    os.environ.pop(_name, None)
    os.environ.pop(_name.upper(), None)

import grpc  # noqa: E402

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(
    os.path.abspath(__file__))))
BIN = os.path.abspath(os.environ.get(
    "HEDGE_BIN", os.path.join(ROOT, "build", "release", "bin")))
HEDGED = os.path.join(BIN, "hedged")
HEDGECTL = os.path.join(BIN, "hedgectl")
os.environ.setdefault(
    "LSAN_OPTIONS", "print_suppressions=0:suppressions="
    + os.path.join(ROOT, "tests", "lsan.supp"))
LOG_TAIL = 60
KIB, MIB, GIB = 1 << 10, 1 << 20, 1 << 30

_live = set()  # Every process started and not yet reaped.
_shared = set()  # Those of them that outlive one test.
_stubs = None  # The directory.


class Timeout(AssertionError):
    """A wait took too long, or a whole test did."""


def _kill_all(but=()):
    for process in list(_live.difference(but)):
        try:
            process.kill()
            process.wait(10)
        except (OSError, subprocess.TimeoutExpired):
            pass
        _live.discard(process)


def _on_term(*_):
    raise KeyboardInterrupt  # unittest ends; atexit kills what is left.


atexit.register(_kill_all)
signal.signal(signal.SIGTERM, _on_term)


# --- the schema --------------------------------------------------------------


def stubs(name="hedge"):
    """(NAME_pb2, NAME_pb2_grpc) of proto/NAME.proto; all are generated once
    per run."""
    global _stubs
    if _stubs is None:
        _stubs = tempfile.mkdtemp(prefix="hedge-proto-")
        atexit.register(shutil.rmtree, _stubs, ignore_errors=True)
        protos = [p for p in os.listdir(os.path.join(ROOT, "proto"))
                  if p.endswith(".proto")]
        subprocess.run(
            ["protoc", "-I", os.path.join(ROOT, "proto"),
             "--python_out", _stubs, "--grpc_python_out", _stubs,
             "--plugin=protoc-gen-grpc_python="
             + (shutil.which("grpc_python_plugin") or "grpc_python_plugin"),
             *protos], check=True, timeout=60)
        sys.path.insert(0, _stubs)
    return (importlib.import_module(name + "_pb2"),
            importlib.import_module(name + "_pb2_grpc"))


@functools.lru_cache(maxsize=None)
def go_program(name):
    """(the program made of tests/NAME in Go, why there is none)."""
    go = shutil.which("go")
    if go is None:
        return None, "there is no Go (apt-get install golang-go)"
    out = os.path.join(ROOT, "build", name)
    built = subprocess.run(
        [go, "build", "-o", out, "."], cwd=os.path.join(ROOT, "tests", name),
        capture_output=True, text=True, timeout=300,
        env={"GOFLAGS": "-buildvcs=false", "GOTOOLCHAIN": "local",
             **os.environ})
    if built.returncode == 0:
        return out, None
    return None, (f"tests/{name} cannot be built: "
                  + built.stderr.strip()[-300:])


def hedge_error(error):
    """hedge's name of a grpc.RpcError, "EFULL"; None if it has none."""
    metadata = dict(error.trailing_metadata() or ())
    return metadata.get("hedge-error")


# --- small things ------------------------------------------------------------

PORTS_FROM, PORTS_TO, PORT_SHARES = 10000, 32000, 11
_ports_given = set()


@functools.cache
def _port_share():
    """Ports that no other test process gives out as long as this one lives. A
    port that was given is free again and again: before its node starts, and
    while that is down."""
    size = (PORTS_TO - PORTS_FROM) // PORT_SHARES
    for share in range(PORT_SHARES):
        lock = os.open(os.path.join(tempfile.gettempdir(),
                                    f"hedge-test-ports-{share}"),
                       os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os.close(lock)
            continue
        return PORTS_FROM + share * size, size, lock
    return PORTS_FROM, PORTS_TO - PORTS_FROM, None


def free_ports(n=3):
    """The first of n free loopback ports in a row, outside the range that
    outgoing connections take theirs from."""
    start, size, _ = _port_share()
    for _ in range(1000):
        first = start + random.randrange(size - n)
        ports = range(first, first + n)
        if not _ports_given.intersection(ports) and all(map(_is_free, ports)):
            _ports_given.update(ports)
            return first
    raise RuntimeError("no free ports")


def _is_free(port):
    with socket.socket() as s:
        s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            s.bind(("127.0.0.1", port))
        except OSError:
            return False
        return True


def wait_until(what, predicate, timeout=20, interval=0.05):
    """The first true value of predicate(); what it waits for is a text."""
    deadline = time.monotonic() + timeout
    while True:
        value = predicate()
        if value:
            return value
        if time.monotonic() > deadline:
            raise Timeout(f"after {timeout} s still waiting for: {what}")
        time.sleep(interval)


def spawn(argv, **kwargs):
    """Popen of something that dies with this process, and with the test."""
    setpriv = shutil.which("setpriv")
    if setpriv:
        # Not a preexec_fn: grpc's threads make code between fork and exec
        # unsafe. Bound to the thread that calls, so call from the main one.
        argv = [setpriv, "--pdeathsig", "KILL", "--", *argv]
    process = subprocess.Popen(argv, **kwargs)
    _live.add(process)
    return process


def resident(pid):
    """What the memory promise counts: RssAnon + RssShmem, in bytes."""
    total = 0
    with open(f"/proc/{pid}/status", encoding="ascii") as f:
        for line in f:
            if line.startswith(("RssAnon:", "RssShmem:")):
                total += int(line.split()[1]) * KIB
    return total


def vm_rss(pid):
    """All resident memory, mapped files included, in bytes."""
    with open(f"/proc/{pid}/status", encoding="ascii") as f:
        for line in f:
            if line.startswith("VmRSS:"):
                return int(line.split()[1]) * KIB
    return 0


def cpu_seconds(pid):
    """Time on a processor, user and system."""
    with open(f"/proc/{pid}/stat", encoding="ascii") as f:
        fields = f.read().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


class Sampler:
    """Peaks of figures while a block runs:

        with Sampler(lambda: [n.resident() for n in nodes]) as peak: ...
        peak.values
    """

    def __init__(self, figures, interval=0.05):
        self.figures, self.interval = figures, interval
        self.values = None
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def _run(self):
        while True:
            try:
                now = self.figures()
            except OSError:  # A process has gone.
                now = None
            if now is not None:
                self.values = (now if self.values is None
                               else [max(p) for p in zip(self.values, now)])
            if self._end.wait(self.interval):
                return

    def __enter__(self):
        self._thread.start()
        return self

    def __exit__(self, *_):
        self._end.set()
        self._thread.join()


def random_bytes(n, seed=1):
    """The same bytes for the same seed; nothing compresses them."""
    return random.Random(seed).randbytes(n)


def report(name, **figures):
    """A measured figure, for the log of the run."""
    text = " ".join(f"{k}={v}" for k, v in figures.items())
    print(f"\n  figure {name}: {text}", file=sys.stderr)


class Result:
    """How a program ended."""

    def __init__(self, argv, status, out, err, seconds):
        self.argv, self.status = argv, status
        self.stdout, self.stderr = out, err  # bytes
        self.seconds = seconds

    @property
    def out(self):
        return self.stdout.decode()

    @property
    def err(self):
        return self.stderr.decode()

    def objects(self):
        """One JSON object a line."""
        return [json.loads(line) for line in self.out.splitlines()]

    def object(self):
        objects = self.objects()
        if len(objects) != 1:
            raise AssertionError(f"expected one object: {self}")
        return objects[0]

    def __str__(self):
        return (f"{' '.join(str(a) for a in self.argv)}\nstatus {self.status}\n"
                f"stdout: {self.stdout[:2000]!r}\n"
                f"stderr: {self.stderr[:2000]!r}")


def hedgectl_start(*args, node=None, env=None, **kwargs):
    """hedgectl as a process that goes on, with pipes. End it with
    finish(process)."""
    environment = {k: v for k, v in os.environ.items() if k != "HEDGE_NODE"}
    environment.update(env or {})
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE,
             "stderr": subprocess.PIPE, **kwargs}
    return spawn(_ctl_argv(args, node), env=environment, **pipes)


def finish(process, data=None, timeout=60):
    """The Result of a hedgectl_start()."""
    try:
        out, err = process.communicate(data, timeout)
    except subprocess.TimeoutExpired as e:
        process.kill()
        out, err = process.communicate()
        raise Timeout(f"{' '.join(process.args)} ran for more than {timeout} "
                      f"s; stderr: {(err or b'')[:2000]!r}") from e
    finally:
        if process.poll() is not None:
            _live.discard(process)
    argv = process.args[process.args.index(HEDGECTL):]
    return Result(argv, process.returncode, out or b"", err or b"", 0)


def shown_on_terminal(*args, node=None):
    """What hedgectl prints where its standard output is a terminal."""
    ours, its = pty.openpty()
    try:
        process = hedgectl_start(*args, node=node, stdout=its)
        os.close(its)
        finish(process)
        shown = b""
        while True:
            try:
                piece = os.read(ours, 65536)
            except OSError:  # EIO: nobody has the other side any more.
                piece = b""
            if not piece:
                return shown.replace(b"\r\n", b"\n")
            shown += piece
    finally:
        os.close(ours)


def _ctl_argv(args, node, json_output=False):
    argv = [HEDGECTL]
    if node is not None:
        argv += ["-n", node if isinstance(node, str) else node.id]
    if json_output:
        argv += ["-o", "json"]
    return argv + [a if isinstance(a, bytes) else str(a) for a in args]


def hedgectl(*args, node=None, json_output=False, data=None, timeout=60,
             env=None):
    """Run hedgectl to its end. `data` is its standard input, bytes."""
    argv = _ctl_argv(args, node, json_output)
    environment = {k: v for k, v in os.environ.items() if k != "HEDGE_NODE"}
    environment.update(env or {})
    start = time.monotonic()
    process = spawn(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                    stderr=subprocess.PIPE, env=environment)
    try:
        out, err = process.communicate(data if data is not None else b"",
                                       timeout)
    except subprocess.TimeoutExpired as e:
        process.kill()
        out, err = process.communicate()
        raise Timeout(f"{' '.join(argv)} ran for more than {timeout} s; "
                      f"stderr: {err[:2000]!r}") from e
    finally:
        if process.poll() is not None:
            _live.discard(process)
    return Result(argv, process.returncode, out, err,
                  time.monotonic() - start)


# --- nodes -------------------------------------------------------------------


class Node:
    """One hedged. Options are flags without dashes: mem_limit="64M". With
    http=True it serves HTTP on a port of its own, `http`. With tcp=True others
    reach it as from another machine: a Unix socket's path would be too long.
    """

    def __init__(self, folder, group="test", engine=None, port=None,
                 tcp=False, **options):
        self.port = port or free_ports()
        self.id = f"127.0.0.1:{self.port}"
        self.grpc = f"127.0.0.1:{self.port + 1}"
        self.folder = os.path.join(folder, f"node-{self.port}"
                                   + "-of-a-long-name" * 7 * tcp)
        self.log = os.path.join(folder, f"node-{self.port}.log")
        self.options = {
            "listen": self.id,
            "group": group,
            "engine": engine or f"lmdb:{os.path.join(folder, 'engine')}",
            "data": self.folder,
            "mem_limit": "64M",
            "disk_limit": "256M",
            "lease": "3s",
            "sync_interval": "500ms",
            **options,
        }
        self.http = f"127.0.0.1:{self.port + 2}"
        if self.options.get("http") is True:
            self.options["http"] = self.http
        self.process = None
        self.expected_to_run = False
        self._channel = None

    def argv(self):
        flags = []
        for name, value in self.options.items():
            if value is not None:
                flags += ["--" + name.replace("_", "-"), str(value)]
        return [HEDGED, *flags]

    def start(self, wait=True, env=None):
        assert self.process is None, f"{self.id} runs already"
        state = os.path.join(os.path.dirname(self.folder), "state")
        with open(self.log, "ab") as log:
            log.write(f"--- {' '.join(self.argv())}\n".encode())
            log.flush()
            self.process = spawn(
                self.argv(), stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                env={**os.environ, "XDG_STATE_HOME": state, "HOME": state,
                     **(env or {})})
        self.expected_to_run = True
        if wait:
            self.wait_ready()
        return self

    @property
    def pid(self):
        return self.process.pid

    def is_running(self):
        return self.process is not None and self.process.poll() is None

    def wait_ready(self, timeout=20, leader=True):
        """Until the node answers, and (leader) knows who leads."""
        def ready():
            if not self.is_running():
                raise AssertionError(
                    f"{self.id} ended with {self.process.returncode}:\n"
                    + self.log_tail(15))
            try:
                status = self.status(timeout=2)
            except grpc.RpcError:
                # A new channel tries at once, an old one when it likes.
                self.close_channel()
                return False
            return status.leader != "" or not leader
        wait_until(f"{self.id} to be ready", ready, timeout)

    # How it ends.

    def _reap(self, timeout):
        self.expected_to_run = False
        try:
            status = self.process.wait(timeout)
        except subprocess.TimeoutExpired as e:
            raise Timeout(f"{self.id} does not end:\n"
                          + self.log_tail(15)) from e
        _live.discard(self.process)
        self.process = None
        self.close_channel()
        return status

    def terminate(self, timeout=30):
        """SIGTERM; the exit status, which should be 0."""
        self.process.send_signal(signal.SIGTERM)
        return self._reap(timeout)

    def kill(self):
        """kill -9."""
        if self.process is not None:
            self.process.kill()
            self._reap(10)

    def suspend(self):
        self.process.send_signal(signal.SIGSTOP)

    def resume(self):
        self.process.send_signal(signal.SIGCONT)

    # What it says.

    def channel(self):
        if self._channel is None:
            self._channel = grpc.insecure_channel(self.grpc, options=[
                ("grpc.max_receive_message_length", 16 * MIB),
                ("grpc.enable_http_proxy", 0),
                ("grpc.use_local_subchannel_pool", 1),
                ("grpc.initial_reconnect_backoff_ms", 100),
                ("grpc.max_reconnect_backoff_ms", 500)])
        return self._channel

    def close_channel(self):
        if self._channel is not None:
            self._channel.close()
            self._channel = None

    def store(self):
        return stubs()[1].StoreStub(self.channel())

    def cluster(self):
        return stubs()[1].ClusterStub(self.channel())

    def peer(self):
        return stubs()[1].PeerStub(self.channel())

    def status(self, timeout=10):
        return self.cluster().Status(stubs()[0].Empty(), timeout=timeout)

    def ctl(self, *args, **kwargs):
        return hedgectl(*args, node=self, **kwargs)

    def resident(self):
        return resident(self.pid)

    def disk_bytes(self):
        """What its data directory takes on the disk."""
        total = 0
        for folder, _, names in os.walk(self.folder):
            for name in names:
                try:
                    info = os.lstat(os.path.join(folder, name))
                except FileNotFoundError:
                    continue
                total += info.st_blocks * 512
        return total

    def log_text(self):
        with open(self.log, encoding="utf-8", errors="replace") as f:
            return f.read()

    def log_tail(self, lines=LOG_TAIL):
        return "\n".join(self.log_text().splitlines()[-lines:])


class Cluster:
    """Several nodes of one group over one lmdb engine."""

    def __init__(self, nodes):
        self.nodes = nodes

    def running(self):
        return [n for n in self.nodes if n.is_running()]

    def leader(self, timeout=20):
        """The node that all running nodes name as their leader."""
        def agreed():
            try:
                names = {n.status(timeout=2).leader for n in self.running()}
            except grpc.RpcError:
                return None
            name = names.pop() if len(names) == 1 else ""
            return next((n for n in self.running() if n.id == name), None)
        return wait_until("one leader", agreed, timeout)

    def others(self):
        leader = self.leader()
        return [n for n in self.running() if n is not leader]

    def wait_members(self, n=None, timeout=20):
        """Until every running node lists all of them and no others."""
        wanted = {node.id for node in self.running()}
        assert n is None or n == len(wanted)

        def complete():
            empty = stubs()[0].Empty()
            try:
                return all({m.id for m in node.cluster().Members(
                    empty, timeout=2).members} == wanted
                    for node in self.running())
            except grpc.RpcError:
                return False
        wait_until(f"members {sorted(wanted)}", complete, timeout)


# --- test cases --------------------------------------------------------------


class HedgeTest(unittest.TestCase):
    """A test with a directory, a time limit and an end to its processes."""

    timeout = 120  # Seconds for one test.
    maxDiff = None

    def setUp(self):
        self.nodes = []
        self.dir = tempfile.mkdtemp(prefix="hedge-test-")
        # Last in, first out: the directory goes when all else is done.
        self.addCleanup(self._remove_dir)
        self.addCleanup(self._end_nodes)
        signal.signal(signal.SIGALRM, self._on_alarm)
        signal.setitimer(signal.ITIMER_REAL, self.timeout)
        self.addCleanup(signal.setitimer, signal.ITIMER_REAL, 0)

    def _on_alarm(self, *_):
        raise Timeout(f"the test took more than {self.timeout} s")

    def _remove_dir(self):
        if os.environ.get("HEDGE_KEEP"):
            print(f"kept: {self.dir}", file=sys.stderr)
        else:
            shutil.rmtree(self.dir, ignore_errors=True)

    def _has_failed(self):
        # In a cleanup the outcome speaks of the cleanup; the result knows.
        result = self._outcome.result
        return any(getattr(test, "test_case", test) is self for test, _ in
                   getattr(result, "failures", []) +
                   getattr(result, "errors", []))

    def _end_nodes(self):
        crashed = [f"{n.id} ended by itself with {n.process.returncode}"
                   for n in self.nodes
                   if n.expected_to_run and not n.is_running()]
        for node in self.nodes:
            if node.process not in _shared:
                node.kill()
                node.close_channel()
        _kill_all(but=_shared)
        if crashed or self._has_failed():
            for node in self.nodes:
                if os.path.exists(node.log):
                    print(f"--- log of {node.id}\n{node.log_tail()}",
                          file=sys.stderr)
        if crashed:
            self.fail("; ".join(crashed))

    def assert_status(self, result, status):
        self.assertEqual(result.status, status, str(result))
        return result

    def assert_done(self, result):
        return self.assert_status(result, 0)


class DaemonTest(HedgeTest):
    """Needs hedged; skipped where the build has none."""

    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        if not os.path.exists(HEDGED):
            raise unittest.SkipTest(f"the build has no {HEDGED}")

    def node(self, start=True, **options):
        """One more node; nodes of a test share the engine."""
        node = Node(self.dir, **options)
        self.nodes.append(node)
        return node.start() if start else node

    def cluster(self, n=3, **options):
        """n nodes that all know each other."""
        nodes = [self.node(start=False, **options) for _ in range(n)]
        return start_cluster(nodes)

    def used(self, nodes=None):
        """Bytes of blocks that nodes hold, for themselves and for others."""
        total = 0
        for node in nodes or self.nodes:
            me = getattr(node.status(), "self")
            total += me.mem_used + me.disk_used
        return total

    def wait_unused(self, nodes=None, timeout=30):
        wait_until("every block to be freed",
                   lambda: self.used(nodes) == 0, timeout)


def start_cluster(nodes):
    for node in nodes:
        node.start(wait=False)
    for node in nodes:
        node.wait_ready()
    cluster = Cluster(nodes)
    cluster.wait_members(len(nodes))
    return cluster


class SharedTest(DaemonTest):
    """Tests of a class that share one cluster, self.shared, and clean up what
    they make in it. `size` nodes with `options`."""

    size = 1
    options = {}

    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        cls.shared_dir = tempfile.mkdtemp(prefix="hedge-test-")
        cls.addClassCleanup(shutil.rmtree, cls.shared_dir, ignore_errors=True)
        nodes = [Node(cls.shared_dir, **cls.options) for _ in range(cls.size)]
        cls.addClassCleanup(cls._end_shared, nodes)
        cls.shared = start_cluster(nodes)
        _shared.update(n.process for n in nodes)

    @classmethod
    def _end_shared(cls, nodes):
        for node in nodes:
            _shared.discard(node.process)
            node.kill()

    def setUp(self):
        super().setUp()
        self.nodes = list(self.shared.nodes)
        self.first = self.nodes[0]


main = unittest.main
