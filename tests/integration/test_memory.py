"""What a node costs: its memory promise, the smallest arena, an idle node."""
import concurrent.futures
import threading
import time

import grpc

from hedge_harness import (MIB, DaemonTest, Sampler, cpu_seconds, finish,
                           hedge_error, hedgectl_start, main, random_bytes,
                           report, start_cluster, stubs, vm_rss, wait_until)

PROMISE = 64 * MIB  # Beside --mem-limit.


def varint(n):
    out = bytearray()
    while n >= 0x80:
        out.append(n & 0x7f | 0x80)
        n >>= 7
    return bytes(out) + bytes([n])


class MemoryTest(DaemonTest):

    def start_write(self, node, name, data, *args):
        """(process, feeding thread)"""
        process = hedgectl_start("sos", "write", name, *args, "-o", "json",
                                 node=node)

        def feed():
            try:
                for at in range(0, len(data), MIB):
                    process.stdin.write(data[at:at + MIB])
                process.stdin.close()
            except (BrokenPipeError, ValueError):
                pass
        thread = threading.Thread(target=feed, daemon=True)
        thread.start()
        return process, thread

    def end_all(self, jobs, timeout=100):
        results = [None] * len(jobs)

        def end(i):
            process, thread = jobs[i]
            if thread is not None:
                thread.join(timeout)
                process.stdin = None
            results[i] = finish(process, timeout=timeout)
        threads = [threading.Thread(target=end, args=(i,))
                   for i in range(len(jobs))]
        for t in threads:
            t.start()
        for t in threads:
            t.join()
        self.assertNotIn(None, results, "a job has failed to end")
        return results

    def watch(self):
        return Sampler(lambda: [n.resident() for n in self.nodes])

    def check_promise(self, what, peak):
        for node, value in zip(self.nodes, peak.values):
            limit = getattr(node.status(), "self").mem_limit
            report(f"{what}: {node.id}",
                   over_the_limit=f"{(value - limit) / MIB:.1f}MiB")
            self.assertLessEqual(value, limit + PROMISE, node.id)


class Promise(MemoryTest):

    def setUp(self):
        super().setUp()
        # Two that spill to each other.
        for _ in range(2):
            self.node(mem_limit="64M", disk_limit="128M", disk_reserve="1M",
                      sync_interval="200ms", start=False)
        start_cluster(self.nodes)
        self.one, self.two = self.nodes

    def test_big_writes_and_reads(self):
        """300 MiB through one node, over both memories and disks."""
        data = random_bytes(50 * MIB) * 6
        with self.watch() as peak:
            self.assert_done(self.end_all(
                [self.start_write(self.one, "x", data)])[0])
            for node in self.nodes:
                got = self.end_all([(hedgectl_start(
                    "sos", "read", "x", node=node), None)])[0]
                self.assert_done(got)
                self.assertTrue(got.stdout == data, node.id)
        self.check_promise("one writer, then readers", peak)

    def test_several_clients(self):
        """Four writers and then eight readers at once, on both nodes, with
        records of different sizes."""
        data = random_bytes(40 * MIB)
        with self.watch() as peak:
            jobs = [self.start_write(self.nodes[i % 2], f"w{i}", data,
                                     *(("--record-size", "30M") if i == 0
                                       else ())) for i in range(4)]
            for result in self.end_all(jobs):
                self.assert_done(result)
            # With memory full there are blocks for few of them at a time.
            readers = [(hedgectl_start("sos", "read", f"w{i % 4}",
                                       "--timeout", "90s",
                                       node=self.nodes[i // 4]), None)
                       for i in range(8)]
            for result in self.end_all(readers):
                self.assert_done(result)
                self.assertTrue(result.stdout == data)
        self.check_promise("several clients", peak)

    def test_readers_by_way_of_another_node(self):
        """Foreign readers of what a third node owns, who do not read on,
        through a node that is full itself."""
        pb = stubs()[0]
        big = self.node(mem_limit="256M", lend_mem="0", sync_interval="200ms")
        data = random_bytes(40 * MIB)
        self.assert_done(self.end_all(
            [self.start_write(big, "x", data)])[0])
        self.assert_done(self.end_all(
            [self.start_write(self.two, "fill", data * 2)])[0])

        def read():
            """Opens, gives credits, takes one block."""
            gate = threading.Event()

            def requests():
                yield pb.ReadRequest(open=pb.ReadOpen(name="x"), credits=8)
                gate.wait(30)
            channel = grpc.insecure_channel(self.two.grpc, options=[
                ("grpc.use_local_subchannel_pool", 1)])
            call = stubs()[1].StoreStub(channel).Read(requests(), timeout=40)
            try:
                next(call)
                next(call)
                return channel, call, gate
            except grpc.RpcError as e:
                self.assertEqual(hedge_error(e), "EBUSY")
                self.assertIn("at once", e.details())
                gate.set()
                channel.close()
                return None
        with self.watch() as peak:
            with concurrent.futures.ThreadPoolExecutor(24) as pool:
                stuck = list(pool.map(lambda _: read(), range(24)))
            time.sleep(1)
        opened = [s for s in stuck if s is not None]
        self.assertGreaterEqual(len(opened), 4)
        for channel, call, gate in opened:
            gate.set()
            call.cancel()
            channel.close()
        self.check_promise(f"{len(opened)} of 24 readers by way of another",
                           peak)

        def again():
            one = read()
            if one:
                one[2].set()
                one[1].cancel()
                one[0].close()
            return one
        wait_until("those that have gone to leave room", again, 15)

    def test_many_writers(self):
        """They share the memory for what is under way; none is turned away
        in the middle."""
        data = random_bytes(20 * MIB)
        node = self.node(mem_limit="128M", disk_limit="2G", disk_reserve="1M",
                         group="other")
        with self.watch() as peak:
            jobs = [self.start_write(node, f"w{i}", data) for i in range(32)]
            for result in self.end_all(jobs):
                self.assert_done(result)
        self.check_promise("32 writers", peak)
        self.assertTrue(node.ctl("sos", "read", "w7").stdout == data)

    def test_many_small_stores(self):
        pb = stubs()[0]
        with self.watch() as peak:
            for i in range(1500):
                node = self.nodes[i % 2]
                list(node.store().Write(iter([
                    pb.WriteRequest(open=pb.WriteOpen(
                        name=f"s{i}",
                        options=pb.StoreOptions(ttl_ms=3600_000))),
                    pb.WriteRequest(records=pb.Records(record=[b"x" * 300])),
                    pb.WriteRequest(commit=pb.WriteCommit())]), timeout=20))
            rows = self.one.ctl("sos", "ls", json_output=True).objects()
            self.assertEqual(len(rows), 1500)
        self.check_promise("1500 small stores", peak)

    def test_tiny_items(self):
        """Messages in which two bytes stand for an object each."""
        pb = stubs()[0]
        count, messages = 1_000_000, 12
        records = b"\x0a\x00" * count  # Empty ones, in their list.

        def write(i):
            def requests():
                yield pb.WriteRequest(open=pb.WriteOpen(
                    name=f"t{i}")).SerializeToString()
                for _ in range(messages):
                    yield (b"\x12" + varint(len(records)) + records)
                yield pb.WriteRequest(
                    commit=pb.WriteCommit()).SerializeToString()
            return list(self.one.channel().stream_stream(
                "/hedge.v1.Store/Write", request_serializer=bytes,
                response_deserializer=pb.WriteReply.FromString)(
                    requests(), timeout=90))[-1].committed

        def junk(_):
            """Fields that no message of ours has."""
            with self.assertRaises(grpc.RpcError) as caught:
                self.one.channel().unary_unary(
                    "/hedge.v1.Store/Stat", request_serializer=bytes)(
                        b"\x98\x06\x00" * (MIB // 3), timeout=60)
            return hedge_error(caught.exception)
        with self.watch() as peak, \
                concurrent.futures.ThreadPoolExecutor(8) as pool:
            written = [pool.submit(write, i) for i in range(4)]
            refused = [pool.submit(junk, i) for i in range(8)]
            for w in written:
                self.assertEqual(w.result().records, count * messages)
            for r in refused:
                self.assertEqual(r.result(), "EPROTO")
        self.check_promise("tiny items", peak)

    def test_slow_streams(self):
        """Writers that send little, and clients that never read replies."""
        idle = [hedgectl_start("sos", "write", f"i{i}",
                               node=self.nodes[i % 2]) for i in range(30)]
        with self.watch() as peak:
            for process in idle:
                process.stdin.write(b"a line\n")
                process.stdin.flush()
            time.sleep(1)
            data = random_bytes(100 * MIB)
            self.assert_done(self.end_all(
                [self.start_write(self.one, "x", data)])[0])
        for process in idle:
            self.assert_done(finish(process))
        self.check_promise("thirty slow writers", peak)


class LargeValues(MemoryTest):
    """What has passed through the hands of many threads stays with none."""

    def all_at_once(self, what, node, args, data=b""):
        with self.watch() as peak:
            jobs = [hedgectl_start(*(a.format(i) for a in args), node=node)
                    for i in range(5)]
            with concurrent.futures.ThreadPoolExecutor(5) as pool:
                for result in pool.map(lambda j: finish(j, data), jobs):
                    self.assert_done(result)
        self.check_promise(what, peak)

    def test_many_at_once(self):
        for _ in range(2):
            self.node(mem_limit="16M", disk_limit="64M", start=False)
        cluster = start_cluster(self.nodes)
        value = random_bytes(16 * MIB)
        for node in (cluster.others()[0], cluster.leader()):
            for what, args, data in (
                    ("puts", ("put", "k{}", "-"), value),
                    ("gets", ("get", "k{}"), b""),
                    ("histories", ("log", "--limit", "4"), b"")):
                self.all_at_once(f"{what} of 16 MiB through {node.id}", node,
                                 args, data)


class SmallestArena(MemoryTest):
    """16 blocks of 64 KiB: nothing stops, and nobody is told that there is no
    room while there is."""

    def setUp(self):
        super().setUp()
        for _ in range(2):
            self.node(start=False, block_size="64K", mem_limit="1M",
                      disk_limit="32M", disk_reserve="1M",
                      sync_interval="200ms")
        start_cluster(self.nodes)
        self.one, self.two = self.nodes

    def test_spill_to_each_other_beside_readers(self):
        data = [random_bytes(24 * MIB, i) for i in range(2)]
        for node in self.nodes:
            self.assert_done(node.ctl("sos", "write", f"open{node.port}",
                                      data=data[0][:4 * MIB]))
        # Readers that are open all the while.
        readers = [hedgectl_start("sos", "read", f"open{node.port}", node=node)
                   for node in self.nodes]
        for reader in readers:
            reader.stdout.read(100)
        with self.watch() as peak:
            jobs = [self.start_write(node, f"w{i}", data[i])
                    for i, node in enumerate(self.nodes)]
            for result in self.end_all(jobs):
                self.assert_done(result)
        for reader in readers:
            self.assert_done(finish(reader))
        for i in range(2):
            for node in self.nodes:
                got = self.assert_done(node.ctl("sos", "read",
                                                f"w{i}")).stdout
                self.assertTrue(got == data[i], (node.id, i))
        self.check_promise("smallest arena", peak)

    def test_full_both(self):
        """More than both hold, from both sides at once."""
        data = random_bytes(40 * MIB)
        jobs = [self.start_write(node, f"w{i}", data, "--record-size", "10K")
                for i, node in enumerate(self.nodes)]
        total = 0
        for i, result in enumerate(self.end_all(jobs)):
            self.assert_status(result, 1)
            self.assertIn("no room", result.err)
            size = result.object()["bytes"]
            total += size
            got = self.assert_done(self.nodes[1 - i].ctl(
                "sos", "read", f"w{i}")).stdout
            self.assertTrue(got == data[:size], i)
        # Two disks of 32 MiB, less what the blocks' padding takes.
        self.assertGreater(total, 58 * MIB)

    def test_large_record(self):
        """A record of 48 MiB through an arena of 1 MiB."""
        data = random_bytes(48 * MIB)
        self.assert_done(self.end_all([self.start_write(
            self.one, "x", data, "--record-size", "48M")])[0])
        for node in self.nodes:
            got = self.assert_done(node.ctl("sos", "read", "x")).stdout
            self.assertTrue(got == data, node.id)

    def test_read_while_it_is_written_and_discarded(self):
        data = random_bytes(4 * MIB) * 25  # 100 MiB through 66 MiB of room.
        job = self.start_write(self.one, "x", data)
        wait_until("the store", lambda: self.two.ctl(
            "sos", "stat", "x").status == 0, 10)
        got = self.two.ctl("sos", "read", "x", "--follow", "--discard",
                           timeout=100)
        self.assert_done(self.end_all([job])[0])
        self.assert_done(got)
        self.assertTrue(got.stdout == data)
        self.wait_unused()


class Idle(MemoryTest):

    def test_idle_cluster(self):
        # As it is by default, but for the room.
        cluster = self.cluster(3, mem_limit="256M", lease="10s",
                               sync_interval="1s")
        self.assert_done(cluster.nodes[0].ctl("sos", "write", "x",
                                              data=random_bytes(8 * MIB)))
        self.assert_done(cluster.nodes[0].ctl("sos", "rm", "x"))
        time.sleep(2)
        before = [cpu_seconds(n.pid) for n in self.nodes]
        start = time.monotonic()
        time.sleep(10)
        took = time.monotonic() - start
        for node, b in zip(self.nodes, before):
            percent = (cpu_seconds(node.pid) - b) / took * 100
            rss = vm_rss(node.pid)
            report(f"idle {node.id}", cpu=f"{percent:.2f}%",
                   rss=f"{rss / MIB:.1f}MiB")
            self.assertLess(percent, 3)

    def test_idle_node_is_small(self):
        cluster = self.cluster(3, mem_limit="256M")
        time.sleep(1)
        for node in cluster.nodes:
            report(f"fresh {node.id}", rss=f"{vm_rss(node.pid) / MIB:.1f}MiB")
            self.assertLess(vm_rss(node.pid), 40 * MIB)

    def test_memory_goes_back(self):
        """After a load, and a time without use."""
        node = self.node(mem_limit="128M")
        self.assert_done(node.ctl("sos", "write", "x",
                                  data=random_bytes(110 * MIB)))
        full = node.resident()
        self.assertGreater(full, 90 * MIB)
        self.assert_done(node.ctl("sos", "rm", "x"))
        wait_until("the arena to be given back",
                   lambda: node.resident() < full - 80 * MIB, 40, 0.5)
        report("after a load", resident=f"{node.resident() / MIB:.1f}MiB")


if __name__ == "__main__":
    main()
