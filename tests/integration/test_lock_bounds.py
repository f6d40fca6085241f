"""Semaphores and locks when peers and clients ask for more than is good: what
a leader keeps for them is bounded, and others do not notice."""
import threading

import grpc

from hedge_harness import MIB, Sampler, main, report
from test_semaphores import Client, LockTest, lock_stubs

# cluster/locks/semaphore.h
ACQUIRE, RELEASE, WATCH = 4, 6, 3


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


if __name__ == "__main__":
    main()
