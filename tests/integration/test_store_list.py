"""More stores than one message can list."""
import threading

import grpc

from hedge_harness import (KIB, DaemonTest, hedge_error, hedgectl, main, stubs,
                           wait_until)


class LongList(DaemonTest):
    N = 7000  # Of each node.

    def setUp(self):
        super().setUp()
        self.pb = stubs()[0]
        self.nodes = self.cluster(2).nodes
        makers = [threading.Thread(target=self.make, args=(node, i))
                  for node in self.nodes for i in range(4)]
        for maker in makers:
            maker.start()
        for maker in makers:
            maker.join()

    def name(self, node, i):
        return f"{i * 7919 % self.N:05}-{node.port}-" + "n" * 235

    def make(self, node, part):
        options = self.pb.StoreOptions(ttl_ms=3600_000)
        store = node.store()
        for i in range(part, self.N, 4):
            list(store.Write(iter([
                self.pb.WriteRequest(open=self.pb.WriteOpen(
                    name=self.name(node, i), options=options)),
                self.pb.WriteRequest(commit=self.pb.WriteCommit())]),
                timeout=60))

    def expected(self):
        """(owner, name), in the order of a list."""
        return sorted((node.id, self.name(node, i))
                      for node in self.nodes for i in range(self.N))

    def pages(self, node, size):
        place = None
        while True:
            page = node.store().List(self.pb.ListRequest(
                max=size, after=place), timeout=20)
            self.assertLess(page.ByteSize(), 2048 * KIB)
            self.assertLessEqual(len(page.stores), min(size, 512))
            yield page
            if not page.HasField("next"):
                return
            place = page.next

    def same(self, found, expected, what):
        """Not assertEqual(), which describes a difference for minutes."""
        self.assertEqual(len(found), len(expected), what)
        self.assertTrue(found == expected, what)

    def test_lists_of_all(self):
        expected = self.expected()
        for node, size in (self.nodes[0], 1000), (self.nodes[1], 333):
            found = [(s.owner, s.name) for page in self.pages(node, size)
                     for s in page.stores]
            self.same(found, expected, f"pages of {size}")
            with self.assertRaises(grpc.RpcError) as caught:
                node.store().List(self.pb.ListRequest(), timeout=20)
            self.assertEqual(hedge_error(caught.exception), "EEXHAUSTED")
            rows = self.assert_done(
                hedgectl("sos", "ls", node=node, json_output=True)).objects()
            self.same([(o["owner"], o["name"]) for o in rows], expected,
                      "hedgectl -o json")
        table = self.assert_done(hedgectl("sos", "ls", node=self.nodes[0]))
        self.assertEqual(len(table.out.splitlines()), 2 * self.N + 1)
        # Made, removed: what is between two pages does not hide the rest.
        first = next(iter(self.pages(node, 500)))
        node.store().Remove(self.pb.StoreRequest(name=first.next.name),
                            timeout=20)
        second = node.store().List(self.pb.ListRequest(
            max=10, after=first.next), timeout=20)
        self.assertEqual([(s.owner, s.name) for s in second.stores],
                         expected[500:510])
        del expected[499]
        # Who does not answer is named once, or has been evicted by then; the
        # others are listed.
        here, gone = self.nodes
        gone.suspend()
        result = hedgectl("sos", "ls", node=here, json_output=True)
        gone.resume()
        self.assert_status(result,
                           result.err.count(f"{gone.id} did not answer"))
        self.same([(o["owner"], o["name"]) for o in result.objects()],
                  [x for x in expected if x[0] == here.id], "of one")


if __name__ == "__main__":
    main()
