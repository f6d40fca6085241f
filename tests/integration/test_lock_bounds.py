"""Semaphores and locks when peers and clients ask for more than is good: what
a leader keeps for them is bounded, and others do not notice."""
import threading

import grpc

from hedge_harness import (KIB, MIB, Sampler, hedgectl, main, report,
                           wait_until)
from test_semaphores import Client, LockTest, lock_stubs

# cluster/locks/semaphore.h
OPEN, WATCH, ACQUIRE, RELEASE = 0, 3, 4, 6
EACH = 16  # Watches of one session.
WAITING_MAX = 12288  # cluster/locks/locks_internal.h
EEXHAUSTED, EFENCED = -26, -15  # store/base/errors.h


class RelayPeer:
    """Another node's end of the stream of calls. The next answer is taken when
    it is asked for, and not before."""

    def __init__(self, node, calls):
        self.pb, service = lock_stubs()
        self.over = threading.Event()  # All has gone, or the stream has ended.
        self.answered = 0
        self.keep = threading.Event()
        # Else it takes in megabytes that nobody reads.
        self.channel = grpc.insecure_channel(
            node.grpc, options=[("grpc.http2.bdp_probe", 0)])
        self.answers = service.LocksRelayStub(self.channel).Relay(
            self._feed(calls))
        self.answers.add_callback(self._on_end)

    def _feed(self, calls):
        for i, fields in enumerate(calls):
            yield self.pb.LockCall(id=i + 1, **fields)
        self.over.set()
        self.keep.wait()

    def take_all(self):
        """Until the other end has ended the stream."""
        for _ in self.answers:
            self.answered += 1

    def close(self):
        self.answers.cancel()
        self.channel.close()

    def _on_end(self):
        self.keep.set()
        self.over.set()


class SlowPeer(LockTest):
    """A node that asks and does not take the answers."""

    CALLS = 150000

    def setUp(self):
        super().setUp()
        self.leader = self.cluster(1).nodes[0]

    def test_answers_that_nobody_takes(self):
        name = "n" * 250  # Each answer names it.
        before = self.leader.resident()
        with Sampler(lambda: [self.leader.resident()]) as peak:
            peer = RelayPeer(self.leader,
                             ({"op": RELEASE, "name": name, "token": 5}
                              for _ in range(self.CALLS)))
            self.assertTrue(peer.over.wait(120))
        grown = peak.values[0] - before
        with self.assertRaises(grpc.RpcError):
            peer.take_all()
        report("answers that nobody takes", taken_after_all=peer.answered,
               grown=f"{grown / MIB:.1f}MiB")
        self.assertLess(grown, 24 * MIB)
        self.assertLess(peer.answered, self.CALLS)
        # Everybody else, and the same node when it comes again, is served.
        other = Client(self.leader)
        other.release("x", other.acquire("x", 1).token)
        again = RelayPeer(self.leader, [{"op": RELEASE, "name": name,
                                         "token": 5}])
        self.assertIn(name, next(again.answers).text)
        again.close()
        peer.close()


class ManyCalls(LockTest):
    """Calls that wait for what may never come."""

    SESSIONS = 1000

    def setUp(self):
        super().setUp()
        self.leader = self.cluster(1).nodes[0]

    def calls(self):
        for session in range(1, self.SESSIONS + 1):
            yield {"op": OPEN, "session": session, "lease_ms": 3600000}
            for _ in range(EACH):
                yield {"op": WATCH, "session": session, "term": 1,
                       "at": 1 << 40, "wait_ms": 3600000}
        yield {"op": RELEASE, "name": "x", "token": 5}

    def refused(self, peer):
        """How many watches were, once all has been looked at."""
        n = 0
        for a in peer.answers:
            if a.status == EFENCED:
                return n
            n += a.status == EEXHAUSTED
        return None

    def test_watchers_are_bounded_by_the_leader(self):
        peer = RelayPeer(self.leader, self.calls())
        self.assertEqual(self.refused(peer),
                         self.SESSIONS * EACH - WAITING_MAX)
        # There is room again once it has gone.
        peer.close()
        def all_taken():
            again = RelayPeer(self.leader, (c for i, c in enumerate(
                self.calls()) if i < 10 or c["op"] == RELEASE))
            try:
                return self.refused(again) == 0
            finally:
                again.close()
        wait_until("watches are taken again", all_taken)


class LongList(LockTest):
    """As many semaphores as a leader keeps, with names as long as they may be:
    more than a message of gRPC may have."""

    N = 16000  # Of the 16384 of SEMAPHORE_CLAIMS_MAX.
    MANY = 5000  # Of these are of one semaphore.

    def name(self, i):
        return "many" if i < self.MANY else f"{i:05}" + "n" * 250

    def setUp(self):
        super().setUp()
        cluster = self.cluster(2)
        self.leader, self.other = cluster.leader(), cluster.others()[0]
        peer = RelayPeer(self.leader, (
            {"op": ACQUIRE, "session": i + 1, "lease_ms": 3600000,
             "request": 1, "holder": f"{i:05}" + "h" * 255,
             "name": self.name(i), "limit": self.N, "permits": 1,
             "wait_ms": 3600000, "ttl_ms": 3600000} for i in range(self.N)))
        granted = 0
        while granted < self.N:
            a = next(peer.answers)
            self.assertEqual(a.status, 0, a.text)
            granted += not a.queued
        peer.close()

    def check(self, found):
        """found: name -> numbers of its holders."""
        self.assertEqual(len(found), self.N - self.MANY + 1)
        # Not with assertEqual(), which describes a difference for minutes.
        many = found.pop("many")
        self.assertEqual((len(many), len(set(many))), (self.MANY, self.MANY))
        self.assertEqual([name for name, holders in found.items()
                          if holders != [int(name[:5])]], [])

    def by_grpc(self, node):
        client = Client(node)
        found, place, pages = {}, None, 0
        while pages == 0 or place is not None:
            page = client.stub.List(client.pb.LockQuery(max=1000, after=place),
                                    timeout=20)
            self.assertLess(page.ByteSize(), 512 * KIB)
            for m in page.semaphores:
                found.setdefault(m.name, []).extend(
                    int(h.holder[:5]) for h in m.holders)
            place = page.next if page.HasField("next") else None
            pages += 1
        return found

    def test_lists_of_all(self):
        for node in self.leader, self.other:
            self.check(self.by_grpc(node))
            self.assert_error("EEXHAUSTED", Client(node).list)
            result = hedgectl("sem", "ls", node=node, json_output=True)
            self.assert_done(result)
            self.check({o["name"]: [int(h["holder"][:5])
                                    for h in o["holders"]]
                        for o in result.objects()})
        result = hedgectl("sem", "ls", "many", node=self.other)
        self.assert_done(result)
        self.assertEqual(len(result.out.splitlines()), self.MANY + 1)


if __name__ == "__main__":
    main()
