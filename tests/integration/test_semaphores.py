"""Semaphores and locks with real daemons: who holds, who waits, what is left
when leaders, holders and nodes are killed or stopped."""
import atexit
import importlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time

import grpc

from hedge_harness import (ROOT, DaemonTest, SharedTest, finish, hedge_error,
                           hedgectl, hedgectl_start, main, wait_until)

_lock_stubs = None


def lock_stubs():
    """(locks_pb2, locks_pb2_grpc), generated once per run."""
    global _lock_stubs
    if _lock_stubs is None:
        out = tempfile.mkdtemp(prefix="hedge-proto-")
        atexit.register(shutil.rmtree, out, ignore_errors=True)
        subprocess.run(
            ["protoc", "-I", os.path.join(ROOT, "proto"),
             "--python_out", out, "--grpc_python_out", out,
             "--plugin=protoc-gen-grpc_python="
             + (shutil.which("grpc_python_plugin") or "grpc_python_plugin"),
             "locks.proto"], check=True, timeout=60)
        sys.path.insert(0, out)
        _lock_stubs = (importlib.import_module("locks_pb2"),
                       importlib.import_module("locks_pb2_grpc"))
    return _lock_stubs


class Client:
    """A holder that is not ours: python3-grpcio and the schema."""

    next_request = 0

    def __init__(self, node, lease_ms=15000, session=None):
        self.pb, service = lock_stubs()
        self.stub = service.LocksStub(node.channel())
        Client.next_request += 1
        self.session = self.pb.LockSession(
            session=session or (os.getpid() << 20) + Client.next_request,
            lease_ms=lease_ms, holder=f"test {Client.next_request}")

    def at(self, node):
        """The same session by way of another node."""
        other = Client(node, self.session.lease_ms, self.session.session)
        other.session.holder = self.session.holder
        return other

    def open(self):
        return self.stub.OpenSession(self.session, timeout=20)

    def renew(self):
        return self.stub.Renew(self.session, timeout=20)

    def close(self):
        return self.stub.CloseSession(self.session, timeout=20)

    def request(self, name, limit, permits=1, **more):
        Client.next_request += 1
        fields = {"session": self.session, "request": Client.next_request,
                  "attempt": 1, "name": name, "limit": limit,
                  "permits": permits, **more}
        return self.pb.LockRequest(**fields)

    def acquire(self, *args, timeout=40, **more):
        return self.stub.Acquire(self.request(*args, **more),
                                 timeout=timeout)

    def waiting(self, *args, **more):
        """A call that stands in line, as a future."""
        return self.stub.Acquire.future(self.request(*args, **more))

    def try_acquire(self, *args, **more):
        return self.stub.TryAcquire(self.request(*args, **more), timeout=20)

    def release(self, name, token):
        return self.stub.Release(self.pb.LockToken(
            name=name, token=token, session=self.session.session), timeout=20)

    def revoke(self, name, token):
        return self.stub.Revoke(self.pb.LockToken(name=name, token=token),
                                timeout=20)

    def list(self, name=""):
        return list(self.stub.List(self.pb.LockQuery(name=name),
                                   timeout=20).semaphores)


class Renewing:
    """with Renewing(client): its session lives as long as the block."""

    def __init__(self, *clients):
        self.clients = clients
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def _run(self):
        while not self._end.wait(0.3):
            for client in self.clients:
                try:
                    client.stub.Renew(client.session, timeout=2)
                except grpc.RpcError:
                    pass

    def __enter__(self):
        self._thread.start()
        return self

    def __exit__(self, *_):
        self._end.set()
        self._thread.join()


class LockTest(DaemonTest):
    def assert_error(self, name, fn, *args, **kwargs):
        with self.assertRaises(grpc.RpcError) as caught:
            fn(*args, **kwargs)
        self.assertEqual(hedge_error(caught.exception), name,
                         str(caught.exception))
        return caught.exception.details()

    def wait_held(self, client, name, holders, waiters=0):
        def so():
            found = client.list(name)
            if not found:
                return holders == waiters == 0
            return (len(found[0].holders), len(found[0].waiters)) == (
                holders, waiters)
        wait_until(f"{name}: {holders} holders, {waiters} waiters", so, 40)


class Service(SharedTest, LockTest):
    """The service, by a client of another make, on three nodes."""

    size = 3

    def setUp(self):
        super().setUp()
        self.leader = self.shared.leader()
        self.others = self.shared.others()

    def test_permits_are_counted_across_nodes(self):
        a, b = Client(self.others[0]), Client(self.others[1])
        first = a.acquire("weights", 5, 3)
        second = b.acquire("weights", 5, 2)
        self.assertGreater(second.token, first.token)
        self.assert_error("EBUSY", a.try_acquire, "weights", 5, 1)
        b.release("weights", second.token)
        third = a.try_acquire("weights", 5, 2)
        self.assertGreater(third.token, second.token)
        info = a.list("weights")[0]
        self.assertEqual(info.limit, 5)
        self.assertEqual({h.token: h.permits for h in info.holders},
                         {first.token: 3, third.token: 2})
        self.assertEqual({h.holder for h in info.holders},
                         {a.session.holder})
        a.close()
        b.close()
        self.assertEqual(a.list("weights"), [])

    def test_tokens_grow_although_the_name_was_forgotten(self):
        last = 0
        for i in range(5):
            client = Client(self.nodes[i % 3])
            token = client.acquire("forgotten", 1 + i % 2).token
            self.assertGreater(token, last)
            last = token
            client.close()

    def test_a_big_request_at_the_head_is_not_overtaken(self):
        holder, big, small = (Client(self.others[0]), Client(self.others[1]),
                              Client(self.leader))
        token = holder.acquire("fifo", 3, 2).token
        wants_three = big.waiting("fifo", 3, 3)
        self.wait_held(holder, "fifo", 1, 1)
        wants_one = small.waiting("fifo", 3, 1)
        self.wait_held(holder, "fifo", 1, 2)
        self.assert_error("EBUSY", small.try_acquire, "fifo", 3, 1)
        self.assertFalse(wants_one.done())
        holder.release("fifo", token)
        first = wants_three.result(timeout=20)
        self.wait_held(holder, "fifo", 1, 1)
        self.assertFalse(wants_one.done())
        big.release("fifo", first.token)
        self.assertGreater(wants_one.result(timeout=20).token, first.token)
        for client in (holder, big, small):
            client.close()

    def test_everybody_in_line_gets_a_turn_in_order(self):
        clients = [Client(self.nodes[i % 3]) for i in range(12)]
        order = []
        first = clients[0].acquire("turns", 1)
        calls = []
        for i, client in enumerate(clients[1:], 1):
            calls.append(client.waiting("turns", 1))
            self.wait_held(client, "turns", 1, i)

        def turn(client, i):
            def then(call):
                order.append(i)
                client.release("turns", call.result().token)
            return then
        for i, call in enumerate(calls):
            call.add_done_callback(turn(clients[i + 1], i))
        clients[0].release("turns", first.token)
        wait_until("all turns", lambda: len(order) == len(calls), 40)
        self.assertEqual(order, list(range(len(calls))))
        self.wait_held(clients[0], "turns", 0)

    def test_a_request_again_is_the_same_request(self):
        client = Client(self.others[0])
        request = client.request("again", 1)
        token = client.stub.Acquire(request, timeout=20).token
        request.attempt = 2
        other = client.at(self.others[1])
        self.assertEqual(other.stub.Acquire(request, timeout=20).token, token)
        self.assertEqual(len(client.list("again")[0].holders), 1)
        client.close()

    def test_renewal_lists_what_is_held(self):
        client = Client(self.others[0])
        self.assertEqual(list(client.open().held), [])
        a = client.acquire("listed", 2)
        b = client.acquire("listed", 2)
        state = client.at(self.leader).renew()
        self.assertEqual([h.token for h in state.held], [a.token, b.token])
        self.assertGreater((state.term, state.at), (b.term, b.at))
        client.close()
        self.assert_error("ENOTFOUND", client.renew)

    def test_wait_ends(self):
        holder, waiter = Client(self.others[0]), Client(self.others[1])
        token = holder.acquire("waits", 1).token
        self.assert_error("ETIMEDOUT", waiter.acquire, "waits", 1, wait_ms=300)
        self.assertEqual(len(holder.list("waits")[0].waiters), 0)
        holder.release("waits", token)
        holder.close()
        waiter.close()

    def test_caller_that_goes_leaves_the_line(self):
        holder, waiter = Client(self.others[0]), Client(self.others[1])
        holder.acquire("left", 1)
        for client in (waiter, waiter.at(self.leader)):
            call = client.waiting("left", 1)
            self.wait_held(holder, "left", 1, 1)
            call.cancel()
            self.wait_held(holder, "left", 1, 0)
        holder.close()
        waiter.close()

    def test_closing_ends_waits_and_grants(self):
        client = Client(self.others[0])
        client.acquire("closed", 1)
        call = client.waiting("closed", 1)
        self.wait_held(client, "closed", 1, 1)
        client.at(self.leader).close()
        with self.assertRaises(grpc.RpcError) as caught:
            call.result(timeout=20)
        self.assertEqual(hedge_error(caught.exception), "ECANCELED")
        self.assertEqual(client.list("closed"), [])

    def test_session_without_renewal_ends_after_its_lease(self):
        gone, waiter = (Client(self.others[0], lease_ms=2000),
                        Client(self.others[1]))
        start = time.monotonic()
        gone.acquire("lease", 1)
        waiter.acquire("lease", 1)
        # Its lease began at the earliest when the request was sent.
        self.assertGreaterEqual(time.monotonic() - start, 2.0)
        self.assert_error("ENOTFOUND", gone.renew)
        waiter.close()

    def test_renewed_session_lives(self):
        client = Client(self.others[0], lease_ms=3000)
        token = client.acquire("alive", 1).token
        for _ in range(8):
            time.sleep(0.6)
            self.assertEqual([h.token for h in client.renew().held], [token])
        client.close()

    def test_revoked_grant_is_not_renewed_and_ends_with_the_lease(self):
        holder, waiter = (Client(self.others[0], lease_ms=3000),
                          Client(self.others[1]))
        token = holder.acquire("revoked", 1).token
        start = time.monotonic()
        state = holder.renew()
        watch = holder.stub.Watch.future(holder.pb.LockWatch(
            session=holder.session.session, term=state.term, at=state.at))
        call = waiter.waiting("revoked", 1)
        waiter.revoke("revoked", token)
        watch.result(timeout=20)  # Told at once.
        with Renewing(holder):
            self.assertEqual(list(holder.renew().held), [])
            self.assertGreater(call.result(timeout=20).token, token)
        # Not before what the holder could have believed was over.
        self.assertGreaterEqual(time.monotonic() - start, 3.0)
        self.assert_error("EFENCED", holder.release, "revoked", token)
        holder.close()
        waiter.close()

    def test_holder_that_gives_up_a_revoked_grant_frees_it_at_once(self):
        holder, waiter = (Client(self.others[0], lease_ms=3600000),
                          Client(self.others[1], lease_ms=3600000))
        token = holder.acquire("told", 1).token
        call = waiter.waiting("told", 1)
        waiter.revoke("told", token)
        waiter.revoke("told", token)  # Again: still there.
        holder.release("told", token)
        call.result(timeout=60)  # The lease is an hour.
        holder.close()
        waiter.close()

    def test_grant_for_a_time(self):
        client, waiter = Client(self.others[0]), Client(self.others[1])
        start = time.monotonic()
        token = client.acquire("timed", 1, ttl_ms=1500).token
        client.close()
        self.assertEqual(client.list("timed")[0].holders[0].token, token)
        waiter.acquire("timed", 1)
        self.assertGreaterEqual(time.monotonic() - start, 1.5)
        waiter.close()

    def test_another_limit_is_refused_with_both(self):
        client = Client(self.others[0])
        client.acquire("limits", 3)
        text = self.assert_error("EINVAL", client.acquire, "limits", 4)
        self.assertIn("3", text)
        self.assertIn("4", text)
        client.close()
        client.acquire("limits", 4)  # Nobody held it any more.
        client.close()

    def test_limits_and_permits_have_bounds(self):
        client = Client(self.others[0])
        most = 2 ** 31 - 1
        client.acquire("bounds", most, most)
        client.close()
        for limit, permits in ((0, 1), (most + 1, 1), (3, 4), (1, most)):
            self.assert_error("EINVAL", client.acquire, "bounds", limit,
                              permits)
        client.close()

    def test_bad_names_are_refused(self):
        client = Client(self.others[0])
        for name in ("", "a/b", ".", "..", "tab\t", "x" * 256):
            self.assert_error("EINVAL", client.acquire, name, 1)
            self.assert_error("EINVAL", client.release, name, 1)
            self.assert_error("EINVAL", client.revoke, name, 1)
        client.acquire("n" * 255, 1)
        client.acquire("Grüße 世界", 1)
        client.close()

    def test_bad_sessions_are_refused(self):
        for lease in (1, 999, 3600001, 2 ** 63):
            client = Client(self.others[0], lease_ms=lease)
            self.assert_error("EINVAL", client.open)
            self.assert_error("EINVAL", client.acquire, "x", 1)
        client = Client(self.others[0])
        client.session.session = 0
        for fn in (client.open, client.renew, client.close):
            self.assert_error("EINVAL", fn)
        self.assert_error("EINVAL", client.acquire, "x", 1)
        client = Client(self.others[0])
        client.session.holder = "h" * 264
        self.assert_error("EINVAL", client.open)
        client = Client(self.others[0])
        self.assert_error("EINVAL", client.acquire, "x", 1, request=0)
        self.assert_error("EINVAL", client.acquire, "x", 1, ttl_ms=5)
        client.open()
        other = Client(self.others[0], 5000, client.session.session)
        self.assertIn("15000", self.assert_error("EINVAL", other.open))
        client.close()

    def test_the_holder_is_no_owner(self):
        """Whoever comes with the holder's name, as a process does that was
        given a dead one's address, has nothing of what it held."""
        a, b = Client(self.others[0]), Client(self.others[1])
        b.session.holder = a.session.holder
        token = a.acquire("address", 2).token
        self.assertEqual(list(b.open().held), [])
        self.assert_error("EFENCED", b.release, "address", token)
        self.assert_error("EFENCED", b.release, "address", 0)
        second = b.acquire("address", 2).token  # One of its own.
        self.assertGreater(second, token)
        b.close()
        self.assertEqual([h.token for h in a.renew().held], [token])
        a.close()

    def test_names_are_names_only(self):
        """No pattern, no prefix, no language: each is itself."""
        names = ("job", "job_2", "jo", "j%", "j_b", "*", "j*", "j?b",
                 "x' OR '1'='1", 'x"; DROP TABLE t; --', "-- ", "\\0", "$(id)",
                 "job ")
        holder, other = Client(self.others[0]), Client(self.others[1])
        tokens = [holder.acquire(name, 1).token for name in names]
        for i, (name, token) in enumerate(zip(names, tokens)):
            self.assert_error("EBUSY", other.try_acquire, name, 1)
            holder.release(name, token)
            state = holder.renew()
            self.assertEqual([h.token for h in state.held], tokens[i + 1:])
        self.assertEqual([s.name for s in other.list() if s.name in names],
                         [])
        holder.close()
        other.close()

    def test_unknown_tokens(self):
        client = Client(self.others[0])
        token = client.acquire("known", 1).token
        other = Client(self.others[1])
        self.assert_error("EFENCED", client.release, "known", token + 1)
        self.assert_error("EFENCED", client.release, "unknown", token)
        self.assert_error("EFENCED", other.release, "known", token)
        self.assert_error("ENOTFOUND", client.revoke, "known", token + 1)
        self.assert_error("ENOTFOUND", client.revoke, "known", 0)
        client.release("known", 0)  # The session's oldest.
        self.assert_error("EFENCED", client.release, "known", token)
        client.close()

    def test_messages_that_are_none(self):
        channel = self.others[0].channel()
        for method in ("OpenSession", "Renew", "CloseSession", "Watch",
                       "Acquire", "TryAcquire", "Release", "Revoke", "List"):
            call = channel.unary_unary(f"/hedge.v1.Locks/{method}")
            self.assert_error("EPROTO", call, b"\xff\xff\xff", timeout=20)
        relay = channel.stream_stream("/hedge.v1.LocksRelay/Relay")
        for bad in (b"\xff", lock_stubs()[0].LockCall(
                id=1, op=99).SerializeToString()):
            self.assert_error("EPROTO", list, relay(iter([bad]), timeout=20))
        # A node that does not lead says so to those who relay.
        call = lock_stubs()[0].LockCall(id=7, op=9)
        done = threading.Event()

        def calls():
            yield call.SerializeToString()
            done.wait(20)  # The stream stays open.
        answers = relay(calls(), timeout=20)
        answer = lock_stubs()[0].LockAnswer.FromString(next(answers))
        done.set()
        self.assertEqual((answer.id, answer.status), (7, -17))

    def test_many_waiters_need_no_threads(self):
        def threads():
            return len(os.listdir(f"/proc/{self.others[0].pid}/task"))
        client = Client(self.others[0])
        client.acquire("crowd", 1)
        before = threads()
        calls = [client.waiting("crowd", 1) for _ in range(500)]
        self.wait_held(client, "crowd", 1, 500)
        self.assertLess(threads(), before + 20)
        client.close()
        for call in calls:
            with self.assertRaises(grpc.RpcError):
                call.result(timeout=20)
        self.assertEqual(client.list("crowd"), [])


class Command(SharedTest, LockTest):
    """hedgectl sem and lock."""

    size = 2

    def ctl(self, *args, node=0, **kwargs):
        return hedgectl(*args, node=self.nodes[node], **kwargs)

    def test_acquire_release_ls_revoke(self):
        r = self.assert_done(self.ctl("sem", "acquire", "cli", "--limit", 2,
                                      "--ttl", "60s"))
        first = int(r.out)
        second = self.assert_done(self.ctl(
            "sem", "acquire", "cli", "--limit", 2, "--ttl", "60s", node=1,
            json_output=True)).object()["token"]
        self.assertGreater(second, first)
        r = self.ctl("sem", "acquire", "cli", "--limit", 2, "--ttl", "60s",
                     "--wait", "0")
        self.assert_status(r, 1)
        self.assertIn("not enough permits", r.err)
        r = self.ctl("sem", "run", "cli", "--limit", 2, "--wait", "0", "--",
                     "true")
        self.assertIn('"cli": not enough permits', r.err)
        self.assertIn("hedgectl sem ls cli", r.err)
        o = self.ctl("sem", "ls", "cli", json_output=True).object()
        self.assertEqual((o["name"], o["limit"], o["waiters"]), ("cli", 2, []))
        self.assertEqual([h["token"] for h in o["holders"]], [first, second])
        self.assertIn(str(first), self.ctl("sem", "ls").out)
        self.assert_done(self.ctl("sem", "release", "cli", first))
        self.assert_status(self.ctl("sem", "release", "cli", first), 3)
        self.assert_done(self.ctl("sem", "revoke", "cli", second))
        self.assert_status(self.ctl("sem", "revoke", "cli", second), 3)
        self.assert_status(self.ctl("sem", "ls", "cli"), 3)

    def test_wrong_usage(self):
        # 2 could be the status of the command that is to run.
        for args in (("sem", "run", "x", "--", "true"),
                     ("sem", "run", "x", "--limit", "0", "--", "true"),
                     ("sem", "run", "x", "--limit", 2 ** 31, "--", "true"),
                     ("sem", "run", "x", "--limit", 2, "--permits", 3, "--",
                      "true"),
                     ("sem", "run", "a/b", "--limit", 2, "--", "true"),
                     ("sem", "run", "x", "--limit", 2),
                     ("sem", "run", "x", "--frob", "--", "true"),
                     ("lock", "run", "--", "true")):
            self.assert_status(self.ctl(*args), 125)
        for args in (("sem", "acquire", "x", "--limit", 2),
                     ("sem", "release", "x", "abc"),
                     ("sem", "revoke", "x", "0")):
            self.assert_status(self.ctl(*args), 2)

    def test_run_passes_the_status_on(self):
        for script, status in (("exit 0", 0), ("exit 7", 7), ("exit 200", 200),
                               ("kill -9 $$", 137), ("kill -TERM $$", 143)):
            self.assert_status(self.ctl("lock", "run", "st", "--", "sh", "-c",
                                        script), status)
        self.assert_status(self.ctl("lock", "run", "st", "--",
                                    "/nonexistent/x"), 127)
        self.assert_status(self.ctl("lock", "run", "st", "--", self.dir), 126)
        r = self.ctl("sem", "run", "st", "--limit", 1, "--", "sh", "-c",
                     "echo $HEDGE_FENCE_TOKEN; cat; echo err >&2", data=b"in")
        self.assertEqual(r.stderr, b"err\n")
        token, rest = r.out.split("\n", 1)
        self.assertGreater(int(token), 0)
        self.assertEqual(rest, "in")
        self.assert_status(self.ctl("sem", "ls", "st"), 3)

    def test_own_failures_are_125(self):
        holder = Client(self.first)
        holder.acquire("own", 1)
        with Renewing(holder):
            r = self.ctl("sem", "run", "own", "--limit", 1, "--wait", "0",
                         "--", "true")
            self.assert_status(r, 125)
            self.assertIn("not enough permits", r.err)
            r = self.ctl("lock", "run", "own", "--wait", "300ms", "--", "true")
            self.assert_status(r, 125)
            r = self.ctl("sem", "run", "own", "--limit", 5, "--", "true")
            self.assert_status(r, 125)
            self.assertIn("limit of 1, not 5", r.err)
        holder.close()
        r = hedgectl("lock", "run", "x", "--", "true", node="127.0.0.1:1")
        self.assert_status(r, 125)

    def test_signals_are_passed_on(self):
        script = ("trap 'echo got; exit 9' {0}; echo ready; "
                  "while :; do sleep 0.05; done")
        for name in ("INT", "TERM", "HUP", "USR1"):
            p = hedgectl_start("lock", "run", "sig", "--", "sh", "-c",
                               script.format(name), node=self.first)
            self.assertEqual(p.stdout.readline(), b"ready\n")
            p.send_signal(getattr(signal, "SIG" + name))
            r = finish(p)
            self.assertEqual((r.status, r.stdout), (9, b"got\n"), str(r))

    def test_interrupted_in_line_leaves_it(self):
        holder = Client(self.first)
        holder.acquire("line", 1)
        with Renewing(holder):
            p = hedgectl_start("lock", "run", "line", "--", "true",
                               node=self.nodes[1])
            self.wait_held(holder, "line", 1, 1)
            p.send_signal(signal.SIGINT)
            self.assertEqual(finish(p).status, -signal.SIGINT)
            self.wait_held(holder, "line", 1, 0)
        holder.close()

    def test_exclusion_under_contention(self):
        path = os.path.join(self.dir, "inside")
        script = (f"mkdir {path} || exit 99; "
                  f"rmdir {path}; echo $HEDGE_FENCE_TOKEN")
        runs = [hedgectl_start("lock", "run", "busy", "--", "sh", "-c", script,
                               node=self.nodes[i % 2]) for i in range(12)]
        results = [finish(p) for p in runs]
        for r in results:
            self.assert_done(r)
        self.assertEqual(len({int(r.out) for r in results}), 12)

    def beat(self, name, lease, *more, node=None, script=None):
        """A run that says the time as long as it lives."""
        path = os.path.join(self.dir, name)
        script = script or (f"while :; do date +%s.%N > {path}.new; "
                            f"mv {path}.new {path}; sleep 0.01; done")
        p = hedgectl_start("lock", "run", name, "--lease", lease, *more, "--",
                           "sh", "-c", script.format(path=path),
                           node=node or self.first)
        wait_until("the command to run", lambda: os.path.exists(path))
        return p, path

    def last_beat(self, path):
        with open(path, encoding="ascii") as f:
            return float(f.read())

    def next_start(self, name):
        r = self.assert_done(self.ctl("lock", "run", name, "--", "date",
                                      "+%s.%N", node=1))
        return float(r.out)

    def test_command_is_dead_before_the_next_grant_when_stopped(self):
        p, path = self.beat("stopped", "2s")
        p.send_signal(signal.SIGSTOP)
        start = self.next_start("stopped")
        self.assertLess(self.last_beat(path), start)
        p.send_signal(signal.SIGCONT)
        self.assert_status(finish(p), 125)
        self.assertLess(self.last_beat(path), start)

    def test_command_is_asked_first(self):
        script = ("trap 'echo told > {path}.told; exit 0' TERM; "
                  "echo > {path}; while :; do sleep 0.01; done")
        p, path = self.beat("asked", "8s", script=script)
        p.send_signal(signal.SIGSTOP)
        wait_until("the command to be told",
                   lambda: os.path.exists(path + ".told"), 40)
        p.send_signal(signal.SIGCONT)
        self.assert_status(finish(p), 125)

    def test_command_dies_with_hedgectl(self):
        begun = time.time()  # The lease cannot be older.
        p, path = self.beat("killed", "2s")
        p.kill()
        finish(p)
        start = self.next_start("killed")
        self.assertLess(self.last_beat(path), start)
        self.assertGreaterEqual(start - begun, 2)

    def test_a_child_that_left_the_group_is_caught(self):
        script = ("setsid sh -c 'trap \"\" TERM; while :; do "
                  "date +%s.%N > {path}.new; mv {path}.new {path}; "
                  "sleep 0.01; done' & sleep 1000")
        p, path = self.beat("daemon", "2s", script=script)
        p.kill()
        finish(p)
        start = self.next_start("daemon")
        self.assertLess(self.last_beat(path), start)

    def test_command_that_ignores_sigterm_is_killed(self):
        script = ("trap '' TERM; while :; do date +%s.%N > {path}.new; "
                  "mv {path}.new {path}; sleep 0.01; done")
        p, path = self.beat("deaf", "2s", script=script)
        p.send_signal(signal.SIGSTOP)
        start = self.next_start("deaf")
        self.assertLess(self.last_beat(path), start)
        p.send_signal(signal.SIGCONT)
        self.assert_status(finish(p), 125)

    def test_killed_guard_takes_the_command_along(self):
        p, path = self.beat("guard", "15s")
        guard = int(subprocess.run(
            # setpriv has become hedgectl.
            ["pgrep", "-P", str(p.pid), "-f", "__guard"],
            stdout=subprocess.PIPE, check=True).stdout)
        os.kill(guard, signal.SIGKILL)
        self.assert_status(finish(p), 125)
        start = self.next_start("guard")
        self.assertLess(self.last_beat(path), start)

    def test_revoked_run_is_ended(self):
        p, path = self.beat("gone", "15s")
        token = self.ctl("sem", "ls", "gone",
                         json_output=True).object()["holders"][0]["token"]
        self.assert_done(self.ctl("sem", "revoke", "gone", token))
        r = self.assert_status(finish(p), 125)
        self.assertIn("taken away", r.err)
        self.assertLess(self.last_beat(path), self.next_start("gone"))

    def test_long_run_is_renewed(self):
        r = self.ctl("lock", "run", "long", "--lease", "3s", "--", "sleep",
                     "7")
        self.assert_done(r)


class Failover(LockTest):
    """What becomes of grants and lines when nodes die."""

    def test_killed_leader(self):
        cluster = self.cluster(3, lease="2s")
        leader = cluster.leader()
        a, b = cluster.others()
        holder, first, second = Client(a), Client(b), Client(a)
        token = holder.acquire("held", 1).token
        with Renewing(holder, first, second):
            waits_first = first.waiting("held", 1)
            self.wait_held(holder, "held", 1, 1)
            waits_second = second.waiting("held", 1)
            self.wait_held(holder, "held", 1, 2)
            leader.kill()
            # The grant survives, with its token; the line is as it was.
            state = holder.renew()
            self.assertEqual([h.token for h in state.held], [token])
            self.wait_held(holder, "held", 1, 2)
            waiters = holder.list("held")[0].waiters
            self.assertEqual([w.holder for w in waiters],
                             [first.session.holder, second.session.holder])
            holder.release("held", token)
            next_token = waits_first.result(timeout=40).token
            self.assertGreater(next_token, token)
            self.assertFalse(waits_second.done())
            first.release("held", next_token)
            self.assertGreater(waits_second.result(timeout=40).token,
                               next_token)

    def test_run_outlives_the_leader_and_its_own_node(self):
        cluster = self.cluster(3, lease="2s")
        leader = cluster.leader()
        p = hedgectl_start("lock", "run", "x", "--", "sh", "-c",
                           "echo ready; read line; echo $line", node=leader)
        self.assertEqual(p.stdout.readline(), b"ready\n")
        leader.kill()
        cluster.leader()
        self.wait_held(Client(cluster.running()[0]), "x", 1)
        r = self.assert_done(finish(p, b"bye\n"))
        self.assertEqual(r.stdout, b"bye\n")
        self.wait_held(Client(cluster.running()[0]), "x", 0)

    def test_stopped_leader_hands_over_at_once(self):
        cluster = self.cluster(2, lease="10s")
        leader, other = cluster.leader(), cluster.others()[0]
        holder = Client(other)
        token = holder.acquire("kept", 2).token
        self.assertEqual(leader.terminate(), 0)
        more = holder.acquire("kept", 2)
        self.assertGreater(more.token, token)
        self.assertEqual([h.token for h in holder.renew().held],
                         [token, more.token])

    def test_suspended_leader_grants_nothing(self):
        cluster = self.cluster(3, lease="2s")
        leader = cluster.leader()
        a, b = cluster.others()
        holder = Client(a, lease_ms=20000)
        token = holder.acquire("one", 1).token
        leader.suspend()
        wait_until("another leader", lambda: a.status().leader not in
                   ("", leader.id), 30)
        holder.release("one", token)
        taken = Client(b, lease_ms=30000).acquire("one", 1).token
        leader.resume()
        late = Client(leader)
        self.assert_error("EBUSY", late.try_acquire, "one", 1)
        self.assertEqual(late.list("one")[0].holders[0].token, taken)

    def test_without_a_leader_the_reason_is_told(self):
        """Also when the caller's time and the node's are the same."""
        cluster = self.cluster(2, lease="60s")
        leader, other = cluster.leader(), cluster.others()[0]
        leader.kill()
        client = Client(other)
        stub, request = client.stub, client.request("x", 1)
        query = client.pb.LockQuery(name="x")
        for fn, message in ((stub.OpenSession, client.session),
                            (stub.TryAcquire, request),
                            (stub.Acquire, request),  # For ever.
                            (stub.List, query)) * 2:
            with self.assertRaises(grpc.RpcError) as caught:
                fn(message, timeout=1)
            self.assertIn(hedge_error(caught.exception),
                          ("ENOLEADER", "ETIMEDOUT"), str(caught.exception))
            self.assertIn("leader", caught.exception.details())
        for args in (("sem", "ls"), ("sem", "release", "x", "1"),
                     ("sem", "acquire", "x", "--limit", "1", "--ttl", "1s",
                      "--wait", "0s"),
                     ("lock", "run", "--wait", "0s", "x", "--", "true")):
            result = other.ctl("--timeout", "1s", *args)
            self.assertNotEqual(result.status, 0, args)
            self.assertIn("leader", result.err, args)

    def test_everything_restarts(self):
        cluster = self.cluster(1, lease="1s")
        node = cluster.nodes[0]
        holder = Client(node, lease_ms=60000)
        token = holder.acquire("kept", 3, 2).token
        node.kill()
        node.start()
        again = holder.at(node)
        self.assertEqual([h.token for h in again.renew().held], [token])
        info = again.list("kept")[0]
        self.assertEqual((info.limit, info.holders[0].permits), (3, 2))
        self.assertEqual(info.holders[0].holder, holder.session.holder)
        again.release("kept", token)


if __name__ == "__main__":
    main()
