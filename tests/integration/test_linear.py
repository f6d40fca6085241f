"""Histories of concurrent clients of a real cluster, while nodes are killed and
stopped, are linearizable: puts and gets of each key, grants of each semaphore.

The checker is tests/linear, made with porcupine, a Go module. Where there is no
Go, or no way to the module, these tests are skipped and say so.
"""
import functools
import json
import os
import random
import shutil
import subprocess
import threading
import time

import grpc

from hedge_harness import (ROOT, DaemonTest, HedgeTest, hedge_error, main,
                           report, stubs)

SECONDS = 12
KEYS = [b"a", b"b", b"c"]
CLIENTS = 9
HOLD_MS = 600000  # A session outlasts the test: what it holds, it holds.


@functools.lru_cache(maxsize=None)
def checker():
    """(the program, why there is none)."""
    go = shutil.which("go")
    if go is None:
        return None, "there is no Go (apt-get install golang-go)"
    out = os.path.join(ROOT, "build", "linear")
    built = subprocess.run(
        [go, "build", "-o", out, "."], cwd=os.path.join(ROOT, "tests", "linear"),
        capture_output=True, text=True, timeout=180,
        env={"GOFLAGS": "-buildvcs=false", **os.environ})
    if built.returncode == 0:
        return out, None
    return None, "the checker cannot be built: " + built.stderr.strip()[-300:]


def check(history):
    """(could it have happened, what the checker says)."""
    done = subprocess.run(
        [checker()[0]], input="".join(json.dumps(o) + "\n" for o in history),
        capture_output=True, text=True, timeout=300)
    if done.returncode not in (0, 1):
        raise AssertionError(done.stderr)
    return done.returncode == 0, done.stdout.strip()


class LinearTest(HedgeTest):
    def setUp(self):
        super().setUp()
        if checker()[0] is None:
            self.skipTest(checker()[1])


class Checker(LinearTest):
    """The checker itself: it must find what is wrong."""

    PUT = {"op": "put", "key": "k", "value": "1", "revision": 5, "call": 0,
           "return": 10}
    GET = {"op": "get", "key": "k", "value": "1", "revision": 5,
           "found": True, "call": 20, "return": 30}
    HOLD = {"op": "acquire", "key": "s", "token": 7, "call": 0, "return": 10}
    GIVE = {"op": "release", "key": "s", "token": 7, "call": 20, "return": 30}

    def verdict(self, *history):
        return check(history)[0]

    def test_registers(self):
        absent = {"op": "get", "key": "k", "found": False, "call": 20,
                  "return": 30}
        lost = {"op": "put", "key": "k", "value": "2", "call": 12}
        later = {**self.GET, "value": "2", "revision": 6, "call": 40,
                 "return": 50}
        self.assertTrue(self.verdict(self.PUT, self.GET))
        self.assertFalse(self.verdict(self.PUT, absent))
        self.assertTrue(self.verdict(self.PUT, {**absent, "call": 5}))
        self.assertFalse(self.verdict(self.PUT, {**self.GET, "value": "2"}))
        self.assertFalse(self.verdict(self.PUT, {**self.GET, "revision": 6}))
        self.assertTrue(self.verdict(self.PUT, lost, self.GET, later))
        self.assertTrue(self.verdict(self.PUT, lost, later))
        # Once seen, never unseen.
        self.assertFalse(self.verdict(
            self.PUT, lost, later, {**self.GET, "call": 60, "return": 70}))
        self.assertFalse(self.verdict(
            self.PUT, {**self.PUT, "call": 20, "return": 30, "revision": 4}))

    def test_semaphores(self):
        other = {**self.HOLD, "token": 8, "call": 15, "return": 18}
        after = {**other, "call": 40, "return": 50}
        self.assertFalse(self.verdict(self.HOLD, other))
        self.assertTrue(self.verdict(
            *({**o, "limit": 2} for o in (self.HOLD, other))))
        self.assertFalse(self.verdict(
            {**self.HOLD, "limit": 2, "permits": 2}, {**other, "limit": 2}))
        self.assertTrue(self.verdict(self.HOLD, self.GIVE, after))
        self.assertTrue(self.verdict(self.HOLD, {**self.GIVE, "call": 12},
                                     other))
        self.assertFalse(self.verdict(self.HOLD, self.GIVE,
                                      {**after, "token": 6}))


class Client:
    """One client at a time, of one node; counts what it did."""

    def __init__(self, number, node, history, stop):
        self.number, self.node = number, node
        self.history, self.stop = history, stop
        self.random = random.Random(number)
        self.done = self.unknown = 0
        self.failure = None
        self.thread = threading.Thread(target=self.run)
        self.channel = grpc.insecure_channel(node.grpc, options=[
            ("grpc.use_local_subchannel_pool", 1),
            ("grpc.enable_http_proxy", 0),
            ("grpc.initial_reconnect_backoff_ms", 50),
            ("grpc.max_reconnect_backoff_ms", 200)])

    def run(self):
        try:
            while not self.stop.is_set():
                self.step()
            self.end()
        except Exception as e:  # pylint: disable=broad-except
            self.failure = e
        finally:
            self.channel.close()

    def step(self):
        raise NotImplementedError

    def end(self):
        pass

    def add(self, op, key, call, answered=True, **fields):
        entry = {"client": self.number, "op": op, "key": key, "call": call,
                 **fields}
        if answered:
            entry["return"] = time.monotonic_ns()
            self.done += 1
        else:
            self.unknown += 1
        self.history.append(entry)

    def pause(self, error):
        self.stop.wait(0.02 if error.code() != grpc.StatusCode.UNAVAILABLE
                       else 0.1)


class Registers(Client):
    def step(self):
        pb, api = stubs("log")
        log = api.LogStub(self.channel)
        key = self.random.choice(KEYS)
        call = time.monotonic_ns()
        if self.random.random() < 0.5:
            value = f"{self.number}.{self.done + self.unknown}"
            try:
                reply = log.Put(pb.LogPutRequest(puts=[pb.LogPut(
                    key=key, value=value.encode(),
                    request=self.random.randbytes(16))]), timeout=3)
            except grpc.RpcError as e:
                self.add("put", key.decode(), call, False, value=value)
                self.pause(e)
                return
            self.add("put", key.decode(), call, value=value,
                     revision=reply.results[0].revision)
            return
        try:
            entry = log.Get(pb.LogGetRequest(key=key), timeout=3).entries[0]
        except grpc.RpcError as e:
            if hedge_error(e) == "ENOTFOUND":
                self.add("get", key.decode(), call, found=False)
            else:
                self.pause(e)
            return
        self.add("get", key.decode(), call, found=True,
                 value=entry.value.decode(), revision=entry.revision)


class Semaphores(Client):
    def __init__(self, *args):
        super().__init__(*args)
        self.session = None
        self.requests = 0

    def locks(self):
        return stubs("locks")[1].LocksStub(self.channel)

    def lock_session(self):
        if self.session is None:
            self.session = self.random.getrandbits(63) | 1
        return stubs("locks")[0].LockSession(
            session=self.session, lease_ms=HOLD_MS,
            holder=f"client {self.number}")

    def give_up(self):
        """What the session may hold nobody knows: give all of it back."""
        while self.session is not None:
            try:
                self.locks().CloseSession(self.lock_session(), timeout=3)
            except grpc.RpcError as e:
                if hedge_error(e) != "ENOTFOUND":
                    if self.stop.is_set():
                        return
                    self.pause(e)
                    continue
            self.session = None

    def step(self):
        pb = stubs("locks")[0]
        name, limit = self.random.choice([("lock", 1), ("pool", 3)])
        permits = self.random.randint(1, limit)
        self.requests += 1
        call = time.monotonic_ns()
        fields = {"permits": permits, "limit": limit}
        try:
            grant = self.locks().Acquire(pb.LockRequest(
                session=self.lock_session(), request=self.requests,
                name=name, limit=limit, permits=permits, wait_ms=2000),
                timeout=4)
        except grpc.RpcError as e:
            if hedge_error(e) not in ("ETIMEDOUT", "EBUSY"):
                self.pause(e)
            self.give_up()
            return
        self.add("acquire", name, call, token=grant.token, **fields)
        time.sleep(self.random.random() * 0.01)
        call = time.monotonic_ns()
        try:
            self.locks().Release(pb.LockToken(
                name=name, token=grant.token, session=self.session), timeout=3)
        except grpc.RpcError as e:
            self.add("release", name, call, False, token=grant.token, **fields)
            self.pause(e)
            self.give_up()
            return
        self.add("release", name, call, token=grant.token, **fields)


class Linear(LinearTest, DaemonTest):
    def run_clients(self, kind, disturb):
        cluster = self.cluster(3, lease="1s", sync_interval="200ms")
        history, stop = [], threading.Event()
        clients = [kind(i, cluster.nodes[i % 3], history, stop)
                   for i in range(CLIENTS)]
        for c in clients:
            c.thread.start()
        try:
            until = time.monotonic() + SECONDS
            while time.monotonic() < until:
                time.sleep(1)
                disturb(cluster)
        finally:
            stop.set()
            for c in clients:
                c.thread.join(30)
        for c in clients:
            self.assertFalse(c.thread.is_alive())
            if c.failure is not None:
                raise c.failure
        done = sum(c.done for c in clients)
        report(f"history of {kind.__name__}", done=done,
               unknown=sum(c.unknown for c in clients))
        self.assertGreater(done, 50)
        possible, verdict = check(history)
        self.assertTrue(possible, verdict)

    @staticmethod
    def kill_leader(cluster):
        node = cluster.leader()
        node.kill()
        time.sleep(0.5)
        node.start()

    @staticmethod
    def stop_leader(cluster):
        node = cluster.leader()
        node.suspend()
        time.sleep(2.5)  # Longer than the lease.
        node.resume()

    def test_log_while_leaders_die(self):
        self.run_clients(Registers, self.kill_leader)

    def test_log_while_leaders_are_stopped(self):
        self.run_clients(Registers, self.stop_leader)

    def test_semaphores_while_leaders_die(self):
        self.run_clients(Semaphores, self.kill_leader)

    def test_semaphores_while_leaders_are_stopped(self):
        self.run_clients(Semaphores, self.stop_leader)


if __name__ == "__main__":
    main()
