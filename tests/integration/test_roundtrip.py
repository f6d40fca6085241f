"""What goes into a store comes out of it, byte for byte."""
import hashlib
import os
import subprocess
import threading
import time
import zlib

from hedge_harness import (HEDGECTL, KIB, MIB, SharedTest, finish,
                           hedgectl_start, main, random_bytes, wait_until)


class RoundTrip(SharedTest):
    options = {"mem_limit": "64M", "disk_limit": "1G"}

    def write(self, name, data, *args, status=0, **kwargs):
        result = self.first.ctl("sos", "write", name, *args, data=data,
                                json_output=True, **kwargs)
        self.addCleanup(self.first.ctl, "sos", "rm", name)
        self.assert_status(result, status)
        return result.object()

    def read(self, name, *args):
        return self.assert_done(
            self.first.ctl("sos", "read", name, *args)).stdout

    def check(self, data, *args, records=None):
        info = self.write("x", data, *args)
        self.assertEqual(info["bytes"], len(data))
        self.assertEqual(info["state"], "closed")
        if records is not None:
            self.assertEqual(info["records"], records)
        got = self.read("x")
        self.assertEqual(len(got), len(data))
        self.assertTrue(got == data, "the bytes differ")
        stat = self.first.ctl("sos", "stat", "x", json_output=True).object()
        self.assertEqual([stat[k] for k in ("records", "bytes", "digest")],
                         [info[k] for k in ("records", "bytes", "digest")])
        self.first.ctl("sos", "rm", "x")
        return info

    def test_empty(self):
        info = self.check(b"", records=0)
        self.assertEqual(info["tiers"], [])

    def test_small(self):
        self.check(b"one\n", records=1)
        self.check(b"no newline", records=1)
        self.check(b"one\ntwo", records=2)
        self.check(b"\n", records=1)
        self.check(b"\n\n\n", records=3)

    def test_binary(self):
        data = random_bytes(5 * MIB + 17)
        self.check(data, records=data.count(b"\n")
                   + (not data.endswith(b"\n")))
        self.check(b"\0" * (3 * MIB), records=1)
        self.check(bytes(range(256)) * 5000)

    def test_delimiters(self):
        data = b"a\0b\0\0c"
        self.check(data, "--delimiter", "\\0", records=4)
        self.check(b"a\tb\t", "--delimiter", "\\t", records=2)
        self.check(b"a,b,\n,", "--delimiter", ",", records=3)
        self.check(b"a\nb\n", "--delimiter", ",", records=1)

    def test_record_size(self):
        data = random_bytes(1 * MIB + 5)
        self.check(data, "--record-size", "64K", records=17)
        self.check(data, "--record-size", "1", records=len(data))
        self.check(data[:10], "--record-size", "1G", records=1)
        self.check(data, "--record-size", "7777", records=-(-len(data) // 7777))

    def test_many_small_records(self):
        data = b"".join(b"%d\n" % i for i in range(1_000_000))
        self.check(data, records=1_000_000)

    def test_file(self):
        path = os.path.join(self.dir, "input")
        data = random_bytes(3 * MIB)
        with open(path, "wb") as f:
            f.write(data)
        self.write("x", b"", path)
        self.assertEqual(self.read("x"), data)
        missing = self.first.ctl("sos", "write", "y", path + "-")
        self.assert_status(missing, 1)
        self.assertIn("No such file", missing.err)
        self.assert_status(self.first.ctl("sos", "stat", "y"), 3)

    def test_directory_as_input(self):
        """Refused before anything is made, by name or as standard input."""
        named = self.first.ctl("sos", "write", "x", self.dir)
        folder = os.open(self.dir, os.O_RDONLY)
        self.addCleanup(os.close, folder)
        given = finish(hedgectl_start("sos", "write", "x", node=self.first,
                                      stdin=folder))
        for result in (named, given):
            self.assert_status(result, 1)
            self.assertIn("Is a directory", result.err)
            self.assertEqual(len(result.err.splitlines()), 1, result)
            self.assert_status(self.first.ctl("sos", "read", "x"), 3)

    def test_input_that_breaks(self):
        """EIO once the store is open: the writer is given up."""
        result = self.first.ctl("sos", "write", "x", "/proc/self/mem")
        self.addCleanup(self.first.ctl, "sos", "rm", "x")
        self.assert_status(result, 1)
        self.assertIn("reading the input: Input/output error", result.err)
        wait_until("the node to notice", lambda: self.first.ctl(
            "sos", "stat", "x", json_output=True).object()["state"]
            == "aborted", 10)
        self.assert_status(self.first.ctl("sos", "read", "x"), 1)

    def test_line_longer_than_the_cut(self):
        """200 MiB without a newline: more than the whole memory tier."""
        piece = random_bytes(8 * MIB).replace(b"\n", b" ")
        path = os.path.join(self.dir, "line")
        with open(path, "wb") as f:
            for _ in range(25):
                f.write(piece)
            f.write(b"\nend")
        size = os.path.getsize(path)
        info = self.write("x", b"", path)
        self.assertEqual(info["bytes"], size)
        self.assertEqual(info["records"], 5)  # 3 of 64 MiB, the rest, "end"
        self.assertGreater(size, 64 * MIB)
        out = hedgectl_start("sos", "read", "x", node=self.first)
        out.stdin.close()
        digest = hashlib.sha256()
        while chunk := out.stdout.read(MIB):
            digest.update(chunk)
        self.assertEqual(out.wait(30), 0)
        out.stdout.close()
        out.stderr.close()
        with open(path, "rb") as f:
            self.assertEqual(digest.hexdigest(),
                             hashlib.file_digest(f, "sha256").hexdigest())

    def test_record_larger_than_memory(self):
        """One record of 150 MiB through a memory tier of 64 MiB."""
        data = random_bytes(6 * MIB) * 25
        info = self.write("x", data, "--record-size", "150M")
        self.assertEqual(info["records"], 1)
        self.assertTrue(self.read("x") == data, "the bytes differ")

    def test_more_than_31_bits_count(self):
        """Above 2 GiB in one store, and in a reader's hands."""
        piece = random_bytes(1000) * 4195
        n = 540
        writer = hedgectl_start("sos", "write", "x", "--record-size", "8M",
                                "--compress", "zstd", "-o", "json",
                                node=self.first)
        wanted = 0
        for _ in range(n):
            writer.stdin.write(piece)
            wanted = zlib.crc32(piece, wanted)
        info = self.assert_done(finish(writer)).object()
        self.addCleanup(self.first.ctl, "sos", "rm", "x")
        self.assertGreater(info["bytes"], 1 << 31)
        self.assertEqual(info["bytes"], n * len(piece))
        reader = hedgectl_start("sos", "read", "x", node=self.first)
        got = size = 0
        while chunk := reader.stdout.read(MIB):
            got = zlib.crc32(chunk, got)
            size += len(chunk)
        reader.stdout.close()
        self.assert_done(finish(reader))
        self.assertEqual((size, got), (info["bytes"], wanted))

    def test_compressed(self):
        data = b"".join(b"line %d of a text that repeats itself\n" % i
                        for i in range(200_000))
        for how in ("none", "auto", "zstd", "zstd:9"):
            with self.subTest(compress=how):
                self.check(data, "--compress", how, records=200_000)

    def test_digest_does_not_depend_on_compression(self):
        data = b"the same again and again\n" * 100_000
        one = self.check(data, "--compress", "none")
        other = self.check(data, "--compress", "zstd")
        self.assertEqual(one["digest"], other["digest"])

    # --- appending ---

    def test_append(self):
        first = self.write("x", b"one\n")
        info = self.write("x", b"two\n", "--append")
        # The writer's part, not the store's.
        self.assertEqual((info["records"], info["bytes"]), (1, 4))
        self.assertEqual([(t["blocks"], t["bytes"]) for t in info["tiers"]],
                         [(1, 4)])
        # A store's digest is the sum of its writers'.
        stat = self.first.ctl("sos", "stat", "x", json_output=True).object()
        parts = [[int(i["digest"][k:k + 16], 16) for k in (0, 16)]
                 for i in (first, info, stat)]
        self.assertEqual([(a + b) % (1 << 64) for a, b in zip(*parts[:2])],
                         parts[2])
        self.assertEqual(sum(t["bytes"] for t in stat["tiers"]), 8)
        self.assertEqual(self.read("x"), b"one\ntwo\n")
        stat = self.first.ctl("sos", "stat", "x", json_output=True).object()
        self.assertEqual((stat["records"], stat["bytes"]), (2, 8))

    def test_append_makes_a_store(self):
        self.write("x", b"one\n", "--append")
        self.assertEqual(self.read("x"), b"one\n")

    def test_several_writers(self):
        """Each writer's records keep their order; none is lost or torn."""
        n, lines = 6, 40_000
        self.write("x", b"")
        writers = [hedgectl_start("sos", "write", "x", "--append",
                                  node=self.first) for _ in range(n)]
        inputs = [b"".join(b"writer %d line %d %s\n" % (w, i, b"x" * (i % 50))
                           for i in range(lines)) for w in range(n)]
        feeders = [threading.Thread(target=lambda p=p, d=d: (
            p.stdin.write(d), p.stdin.close())) for p, d in
            zip(writers, inputs)]
        for f in feeders:
            f.start()
        for f in feeders:
            f.join()
        for w in writers:
            w.stdin = None
            self.assert_done(finish(w))
        got = self.read("x").splitlines(keepends=True)
        self.assertEqual(len(got), n * lines)
        for w in range(n):
            mine = b"".join(r for r in got if r.startswith(b"writer %d " % w))
            self.assertTrue(mine == inputs[w], f"writer {w}'s records differ")

    def test_existing_name(self):
        self.write("x", b"one\n")
        result = self.first.ctl("sos", "write", "x", data=b"two\n")
        self.assert_status(result, 1)
        self.assertEqual(len(result.err.splitlines()), 1, result)
        self.assertIn('"x" exists already', result.err)
        self.assertIn("--append, or hedgectl sos rm x", result.err)
        self.assertEqual(self.read("x"), b"one\n")

    def test_other_options(self):
        self.write("x", b"one\n", "--ttl", "10m")
        for args, text in ((("--ttl", "11m"), "TTL"),
                           (("--replicas", "2", "--ttl", "10m"), "replicas"),
                           (("--ttl", "10m", "--mem-limit", "5M"), "memory"),
                           (("--ttl", "10m", "--disk-limit", "5M"), "disk"),
                           (("--ttl", "10m", "--compress", "none"),
                            "compression")):
            with self.subTest(args=args):
                result = self.first.ctl("sos", "write", "x", "--append", *args,
                                        data=b"two\n")
                self.assert_status(result, 2)
                self.assertIn(text, result.err)
                self.assertEqual(len(result.err.splitlines()), 1, result)
        self.assertEqual(self.read("x"), b"one\n")
        # The same options, or none, are fine.
        self.write("x", b"two\n", "--append", "--ttl", "10m")
        self.write("x", b"three\n", "--append")
        self.assertEqual(self.read("x"), b"one\ntwo\nthree\n")

    # --- names ---

    def test_bad_names(self):
        before = self.first.ctl("sos", "ls").stdout
        for name in ("", "a/b", "/", "..", ".", "a\nb", "a\x7fb", "\x1b[31m",
                     "x" * 256, "y" * 4096, b"\xff\xfe"):
            for verb in ("write", "read", "stat", "rm"):
                with self.subTest(name=name[:10], verb=verb):
                    result = self.first.ctl("sos", verb, name, data=b"x\n")
                    self.assertIn(result.status, (1, 2), str(result))
                    self.assertEqual(len(result.stderr.splitlines()), 1,
                                     str(result))
                    self.assertNotIn(b"\x1b", result.stderr)
                    self.assertLess(len(result.stderr), 700, str(result))
        self.assertEqual(self.first.ctl("sos", "ls").stdout, before)

    def test_good_names(self):
        for name in ("a", "x" * 255, "with space", "käse", "-", "a:b*c?",
                     "日本"):
            with self.subTest(name=name):
                info = self.write(name, b"one\n")
                self.assertEqual(info["name"], name)
                self.assertEqual(self.read(name), b"one\n")

    def test_bad_flags(self):
        for args in (("--delimiter", "ab"), ("--delimiter", ""),
                     ("--record-size", "0"), ("--record-size", "2G"),
                     ("--record-size", "-1"), ("--record-size", "1", "-d"),
                     ("--delimiter", ",", "--record-size", "4"),
                     ("--mem-limit", "much"), ("--disk-limit", "5X"),
                     ("--ttl", "0"), ("--ttl", "5"), ("--ttl", "forever"),
                     ("--replicas", "0"), ("--replicas", "1000"),
                     ("--compress", "lz4"), ("--compress", "zstd:99"),
                     ("--nonsense",), ("a", "b")):
            with self.subTest(args=args):
                result = self.first.ctl("sos", "write", "z", *args, data=b"x")
                self.assert_status(result, 2)
                self.assertEqual(len(result.err.splitlines()), 1, str(result))
                self.assertEqual(result.stdout, b"")
        self.assert_status(self.first.ctl("sos", "stat", "z"), 3)

    def test_nothing_of_that_name(self):
        for verb in ("read", "stat", "rm"):
            result = self.first.ctl("sos", verb, "nothing")
            self.assert_status(result, 3)
            self.assertEqual(
                result.err,
                f'hedgectl sos {verb}: there is no store "nothing"\n')

    # --- readers ---

    def test_reader_that_goes_away(self):
        self.write("x", random_bytes(40 * MIB))
        for _ in range(3):
            process = hedgectl_start("sos", "read", "x", node=self.first)
            process.stdout.read(100 * KIB)
            process.stdout.close()
            process.stdin.close()
            # A reader of ours that cannot write its output is quiet.
            self.assertNotEqual(process.wait(20), 0)
            self.assertEqual(process.stderr.read(), b"")
            process.stderr.close()
        self.assertEqual(len(self.read("x")), 40 * MIB)

    def test_output_that_is_full(self):
        self.write("x", random_bytes(2 * MIB))
        with open("/dev/full", "wb") as full:
            process = hedgectl_start("sos", "read", "x", node=self.first,
                                     stdout=full)
            result = finish(process)
        self.assert_status(result, 1)
        self.assertIn("No space left", result.err)

    def test_many_readers(self):
        data = random_bytes(30 * MIB)
        self.write("x", data)
        wanted = hashlib.sha256(data).hexdigest()
        readers = [subprocess.Popen(
            ["sh", "-c",
             f'"{HEDGECTL}" -n {self.first.id} sos read x | sha256sum'],
            stdout=subprocess.PIPE) for _ in range(5)]
        for r in readers:
            out, _ = r.communicate(timeout=60)
            self.assertEqual(out.split()[0].decode(), wanted)

    def test_text_output(self):
        result = self.first.ctl("sos", "write", "t", data=b"one\n")
        self.addCleanup(self.first.ctl, "sos", "rm", "t")
        self.assert_done(result)
        self.assertIn("is kept until", result.err)
        self.assertIn("60 min", result.err)
        self.assertIn("records", result.out)

    # --- slow data ---

    def test_follow_before_there_is_a_store(self):
        reader = hedgectl_start("sos", "read", "x", "--follow",
                                node=self.first)
        time.sleep(0.7)
        self.assertIsNone(reader.poll())
        self.write("x", b"one\n")
        result = finish(reader)
        self.assert_done(result)
        self.assertEqual((result.stdout, result.err), (b"one\n", ""))
        late = self.first.ctl("sos", "read", "y", "--follow", "--timeout",
                              "600ms")
        self.assert_status(late, 3)
        self.assertIn('no store "y"', late.err)
        self.assertGreater(late.seconds, 0.3)

    def test_follow_beside_a_slow_writer(self):
        writer = hedgectl_start("sos", "write", "x", node=self.first)
        self.addCleanup(self.first.ctl, "sos", "rm", "x")
        writer.stdin.write(b"first\n")
        writer.stdin.flush()
        self.await_store("x")
        reader = hedgectl_start("sos", "read", "x", "--follow",
                                node=self.first)
        self.assertEqual(self.line_of(reader, 5), b"first\n")
        for i in range(5):
            line = b"line %d\n" % i
            writer.stdin.write(line + b"half ")
            writer.stdin.flush()
            self.assertEqual(self.line_of(reader, 3),
                             (b"half " if i else b"") + line)
        self.assertIsNone(reader.poll())
        self.assert_done(finish(writer))
        rest = finish(reader)
        self.assert_done(rest)
        self.assertEqual(rest.stdout, b"half ")

    def await_store(self, name):
        wait_until(f"store {name}", lambda: self.first.ctl(
            "sos", "stat", name).status == 0, 10)

    def line_of(self, process, seconds):
        line = []
        reader = threading.Thread(
            target=lambda: line.append(process.stdout.readline()))
        reader.start()
        reader.join(seconds)
        self.assertFalse(reader.is_alive(), f"no line within {seconds} s")
        return line[0]

    def test_read_of_an_open_store(self):
        writer = hedgectl_start("sos", "write", "x", node=self.first)
        self.addCleanup(self.first.ctl, "sos", "rm", "x")
        writer.stdin.write(b"first\n")
        writer.stdin.flush()
        self.await_store("x")
        wait_until("the first record", lambda: self.read("x") == b"first\n", 5)
        result = self.first.ctl("sos", "read", "x")
        self.assertIn("still being written", result.err)
        stat = self.first.ctl("sos", "stat", "x", json_output=True).object()
        self.assertEqual((stat["state"], stat["records"], stat["bytes"]),
                         ("open", 1, 6))
        self.assert_done(finish(writer))


if __name__ == "__main__":
    main()
