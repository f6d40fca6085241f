"""hedgectl without a daemon: usage, help, exit statuses, JSON, finding a
node."""
import os
import re
import socket
import subprocess

import grpc

from fake_node import FakeNode
from hedge_harness import (HEDGECTL, ROOT, HedgeTest, free_ports, hedgectl,
                           main, spawn)

COMMANDS = ["members", "leader", "status", "sos write", "sos read", "sos stat",
            "sos ls", "sos rm",
            "sem run", "sem acquire", "sem release", "sem ls", "sem revoke",
            "lock run"]


class Usage(HedgeTest):
    def assert_usage(self, *args, says, env=None):
        """Exit status 2, nothing on stdout, one line that says it."""
        result = self.assert_status(hedgectl(*args, env=env, timeout=10), 2)
        self.assertEqual(result.stdout, b"", str(result))
        self.assertEqual(result.err.count("\n"), 1, str(result))
        self.assertTrue(result.err.startswith("hedgectl"), str(result))
        self.assertIn(says, result.err)

    def test_no_or_unknown_command(self):
        self.assert_usage(says="no command")
        self.assert_usage("frobnicate", says="unknown command 'frobnicate'")
        self.assert_usage("sos", says="needs one of: write, read, stat")
        self.assert_usage("sos", "frob", says="unknown command 'sos frob'")

    def test_operands(self):
        self.assert_usage("sos", "stat", says="usage: hedgectl sos stat NAME")
        self.assert_usage("sos", "rm", "a", "b", says="operand 'b'")
        self.assert_usage("sos", "write", "a", "b", "c", says="operand 'c'")
        self.assert_usage("leader", "--", "-x", says="operand '-x'")

    def test_options(self):
        self.assert_usage("--frob", "leader", says="unknown option '--frob'")
        self.assert_usage("leader", "--frob", says="unknown option '--frob'")
        self.assert_usage("leader", "-x", says="unknown option '-x'")
        self.assert_usage("leader", "--follow", says="unknown option")
        self.assert_usage("put", "k2", "-v", says="goes behind '--'")
        self.assert_usage("leader", "--timeout", says="needs a value: DUR")
        self.assert_usage("members", "--follow=yes", says="takes no value")
        self.assert_usage("-o", "xml", "leader", says="table|json")
        self.assert_usage("leader", "-oxml", says="table|json")
        for value in ("5", "-1s", "x", "", "0", "0s", "9999999999999999h"):
            self.assert_usage("leader", "--timeout", value, says="--timeout")

    def test_values_of_write(self):
        for option, values in (
                ("--mem-limit", ("x", "1X", "-1", "99999999999T")),
                ("--disk-limit", ("", "1.5")),
                ("--ttl", ("10", "0", "x")),
                ("--replicas", ("0", "5", "x", "1.5", "-1")),
                ("--compress", ("gzip", "zstd:", "zstd:0", "zstd:99", "")),
                ("--delimiter", ("", "ab", "\\x", "é")),
                ("--record-size", ("0", "2G", "x"))):
            for value in values:
                with self.subTest(option=option, value=value):
                    self.assert_usage("sos", "write", "s", option, value,
                                      says=option)
        self.assert_usage("sos", "write", "s", "--delimiter", ",",
                          "--record-size", "10", says="exclude each other")

    def test_names_of_stores(self):
        for name in ("", ".", "..", "a/b", "a\nb", "x" * 256, b"\xff"):
            for verb in ("write", "read", "stat", "rm"):
                with self.subTest(name=name, verb=verb):
                    result = subprocess.run(
                        [HEDGECTL, "sos", verb, name], capture_output=True,
                        check=False, timeout=10, stdin=subprocess.DEVNULL)
                    self.assertEqual(result.returncode, 2, result.stderr)
                    self.assertEqual(result.stderr.count(b"\n"), 1)
        self.assert_usage("sos", "rm", "/a", says="at byte 1;")

    def test_addresses(self):
        for address in ("x", "x:", ":", "x:0", "x:65536", "a:1,", ",a:1",
                        "::1:80", "a b:1"):
            with self.subTest(address=address):
                self.assert_usage("-n", address, "leader", says="-n: ")
        self.assert_usage("leader", env={"HEDGE_NODE": "x"},
                          says="$HEDGE_NODE: ")


class Help(HedgeTest):
    def test_version(self):
        result = self.assert_done(hedgectl("--version"))
        self.assertRegex(result.out, r"^hedgectl \d+\.\d+\.\d+\n$")

    def test_program(self):
        for args in (["--help"], ["-h"], ["help"], ["-o", "json", "--help"]):
            result = self.assert_done(hedgectl(*args))
            self.assertEqual(result.err, "")
            for text in COMMANDS + ["--node", "--output", "--timeout",
                                    "--version", "HEDGE_NODE"]:
                self.assertIn(text, result.out)
            self.assertLessEqual(max(map(len, result.out.splitlines())), 80)

    def test_group(self):
        result = self.assert_done(hedgectl("sos", "--help"))
        self.assertIn("sos write", result.out)
        self.assertNotIn("members", result.out)

    def test_every_command(self):
        for command in COMMANDS:
            with self.subTest(command=command):
                result = self.assert_done(hedgectl(*command.split(), "--help"))
                self.assertTrue(result.out.startswith(
                    f"usage: hedgectl {command}"), result.out)
                self.assertIn("--timeout", result.out)

    def test_options_of_write(self):
        result = self.assert_done(hedgectl("sos", "write", "--help"))
        for text in ("--append", "--mem-limit", "--disk-limit", "--ttl",
                     "--replicas", "--compress", "--delimiter",
                     "--record-size", "Default 1h.",
                     "losing the owner loses the store"):
            self.assertIn(text, " ".join(result.out.split()))

    def test_full_disk(self):
        with open("/dev/full", "wb") as full:
            result = subprocess.run([HEDGECTL, "--help"], stdout=full,
                                    stderr=subprocess.PIPE, check=False,
                                    timeout=10)
        self.assertEqual(result.returncode, 1)
        self.assertIn(b"No space left", result.stderr)

    def test_closed_pipe_is_quiet(self):
        process = spawn([HEDGECTL, "--help"], stdout=subprocess.PIPE,
                        stderr=subprocess.PIPE)
        process.stdout.close()
        err = process.stderr.read()
        process.stderr.close()
        process.wait(10)
        self.assertEqual(err, b"")


class Unreachable(HedgeTest):
    def test_refused(self):
        port = free_ports(2)
        result = self.assert_status(
            hedgectl("leader", node=f"127.0.0.1:{port}"), 1)
        self.assertEqual(result.stdout, b"")
        self.assertEqual(result.err.count("\n"), 1)
        self.assertIn(f"no node answers at 127.0.0.1:{port}", result.err)
        self.assertLess(result.seconds, 5)

    def test_silent(self):
        """Something listens and never says a word."""
        port = free_ports(2)
        with socket.create_server(("127.0.0.1", port)), \
                socket.create_server(("127.0.0.1", port + 1)):
            result = self.assert_status(
                hedgectl("--timeout", "1500ms", "leader",
                         node=f"127.0.0.1:{port}"), 1)
        self.assertEqual(result.err.count("\n"), 1, str(result))
        self.assertGreater(result.seconds, 1)
        self.assertLess(result.seconds, 5)

    def test_default_and_environment(self):
        port = free_ports(2)
        result = self.assert_status(hedgectl(
            "leader", env={"HEDGE_NODE": f"127.0.0.1:{port}"}), 1)
        self.assertIn(str(port), result.err)


class Answers(HedgeTest):
    def fake(self, **kwargs):
        node = FakeNode(**kwargs)
        self.addCleanup(node.stop)
        return node

    def test_finds_the_node(self):
        """The port after the id's; the port itself; the next of a list; past
        a silent one."""
        nobody = f"127.0.0.1:{free_ports(2)}"
        behind, itself = self.fake(), self.fake(on_port_itself=True)
        for node, wanted in ((behind.id, behind), (itself.id, itself),
                             (f"localhost:{behind.port}", behind),
                             (f"{nobody},{behind.id}", behind)):
            with self.subTest(node=node):
                result = self.assert_done(hedgectl("leader", node=node))
                self.assertEqual(result.out, wanted.id + "\n")
        silent = free_ports(2)
        with socket.create_server(("127.0.0.1", silent)):
            result = self.assert_done(hedgectl(
                "leader", node=f"127.0.0.1:{silent},{behind.id}"))
            self.assertLess(result.seconds, 10)
        result = self.assert_done(hedgectl(
            "leader", env={"HEDGE_NODE": behind.id}))
        self.assertEqual(result.out, behind.id + "\n")

    def test_global_options_anywhere(self):
        node = self.fake()
        for args in (["-o", "json", "-n", node.id, "sos", "stat", "a"],
                     ["sos", "stat", "-o", "json", "-n", node.id, "a"],
                     ["sos", "stat", "a", "--output=json", f"-n{node.id}"],
                     ["-ojson", "sos", "stat", f"--node={node.id}", "a"],
                     ["-ojson", "sos", "stat", f"-n{node.id}", "--", "a"]):
            with self.subTest(args=args):
                result = self.assert_done(hedgectl(*args))
                self.assertEqual(result.object()["name"], "a")

    def test_leader(self):
        node = self.fake()
        result = hedgectl("leader", node=node, json_output=True)
        leader = self.assert_done(result).object()
        self.assertEqual(leader["id"], node.id)
        # Beyond what a double can hold.
        self.assertEqual(leader["token"], (1 << 53) + 1)
        self.assertEqual(leader["lease_ms"], 10000)

    def test_members(self):
        node = self.fake()
        result = hedgectl("members", node=node, json_output=True)
        members = self.assert_done(result).objects()
        self.assertEqual([m["id"] for m in members],
                         ["127.0.0.1:8080", "127.0.0.1:8090"])
        self.assertEqual([m["leader"] for m in members], [True, False])
        self.assertEqual(members[0]["mem_free"], (1 << 53) + 1)
        self.assertEqual(members[1]["disk_free"], 1)
        self.assertEqual(members[1]["incarnation"], str((1 << 63) + 1))
        table = self.assert_done(hedgectl("members", node=node)).out
        self.assertEqual(len(table.splitlines()), 3)
        self.assertTrue(table.startswith("ID "))

    def test_members_follow(self):
        """A list is printed when it is another one, not when only figures
        differ; a stream that ends is a failure."""
        node = self.fake()
        figures, leader, again = (node.members(2) for _ in range(3))
        figures.version = 10
        figures.members[0].mem_free = 5
        figures.members[1].disk_used = 6
        leader.version, leader.token = 11, 8
        again.version, again.token = 12, 8
        again.members[1].incarnation += 5
        node.member_lists[1:1] = [figures, leader, again]
        result = hedgectl("members", "--follow", node=node, json_output=True)
        self.assert_status(result, 1)
        self.assertEqual([m["list"] for m in result.objects()],
                         [2, 2, 11, 11, 12, 12, 3, 3, 3])
        self.assertIn("ended", result.err)
        table = hedgectl("members", "--follow", node=node)
        self.assertEqual(table.out.count("ID "), 4)

    def test_status(self):
        node = self.fake()
        result = hedgectl("status", node=node, json_output=True)
        status = self.assert_done(result).object()
        self.assertEqual(status["id"], node.id)
        self.assertEqual(status["leader"], node.id)
        self.assertEqual(status["features"], [
            {"name": "io_uring", "on": False, "detail": "refused"}])
        text = self.assert_done(hedgectl("status", node=node)).out
        self.assertIn("io_uring: off, refused", text)

    def test_stat(self):
        node = self.fake()
        result = hedgectl("sos", "stat", "x", node=node, json_output=True)
        info = self.assert_done(result).object()
        wanted = {
            "name": "x", "owner": node.id, "generation": str((1 << 63) + 5),
            "records": 3, "bytes": 1 << 60,
            "digest": "000102030405060708090a0b0c0d0e0f", "state": "closed",
            "expires_at": "2023-11-14T22:13:20.123Z",
            "tiers": [
                {"node": node.id, "tier": "memory", "blocks": 1, "bytes": 10,
                 "stored_bytes": 5},
                {"node": node.id, "tier": "disk", "blocks": 2, "bytes": 20,
                 "stored_bytes": 20}]}
        self.assertEqual({k: info[k] for k in wanted}, wanted)
        self.assertEqual(info["options"]["compress"], "zstd:3")
        text = self.assert_done(hedgectl("sos", "stat", "x", node=node)).out
        self.assertIn("000102030405060708090a0b0c0d0e0f", text)

    def test_ls(self):
        node = self.fake()
        result = hedgectl("sos", "ls", node=node, json_output=True)
        names = [o["name"] for o in self.assert_done(result).objects()]
        self.assertEqual(names, ["a", "bé"])
        rows = self.assert_done(
            hedgectl("sos", "ls", node=node)).out.splitlines()
        # Columns line up, whatever the bytes of a name.
        self.assertEqual(len({row.index("127") for row in rows[1:]}), 1)

    def test_numbers_in_json(self):
        """What uses all of 64 bits is a string, everywhere, and nothing
        else that is a number."""
        node = self.fake()
        found = set()

        def check(key, value):
            if isinstance(value, dict):
                for k, v in value.items():
                    check(k, v)
            elif isinstance(value, list):
                for v in value:
                    check(key, v)
            elif key in ("generation", "incarnation"):
                self.assertRegex(value, r"^\d+$", key)
                found.add(key)
            elif isinstance(value, str):
                self.assertNotRegex(value, r"^\d+$", key)
        for args in (["members"], ["leader"], ["status"], ["sos", "stat", "x"],
                     ["sos", "ls"]):
            for o in self.assert_done(hedgectl(
                    *args, node=node, json_output=True)).objects():
                check("", o)
        self.assertEqual(found, {"generation", "incarnation"})

    def test_ls_incomplete(self):
        node = self.fake(missing=["127.0.0.1:9999"])
        result = hedgectl("sos", "ls", node=node, json_output=True)
        self.assert_status(result, 1)
        self.assertEqual(len(result.objects()), 2)
        self.assertIn("127.0.0.1:9999 did not answer", result.err)

    def test_rm(self):
        node = self.fake()
        result = self.assert_done(hedgectl("sos", "rm", "x", node=node))
        self.assertEqual(result.stdout, b"")
        self.assertEqual(node.removed, ["x"])

    def test_errors_of_the_node(self):
        code = grpc.StatusCode
        node = self.fake(errors={
            "gone": ("ENOTFOUND", code.NOT_FOUND, "no store 'gone'"),
            "old": ("EEXPIRED", code.NOT_FOUND, "expired 12 s ago"),
            "lost": ("ELOST", code.DATA_LOSS, "its node has died"),
            "leaderless": ("ENOLEADER", code.UNAVAILABLE, "no leader")})
        for name, status, text in (
                ("gone", 3, "no store 'gone'"), ("old", 3, "expired 12 s ago"),
                ("lost", 1, "its node has died"),
                ("leaderless", 1, "no leader")):
            for verb in ("stat", "rm"):
                with self.subTest(name=name, verb=verb):
                    result = self.assert_status(
                        hedgectl("sos", verb, name, node=node), status)
                    self.assertEqual(
                        result.err, f"hedgectl sos {verb}: {text}\n")

    def test_statuses(self):
        """Whatever the command, a code has the status that help and README
        say."""
        node = self.fake()
        text = " ".join(self.assert_done(hedgectl("--help")).out.split())
        said = {}
        for status, names in re.findall(r"(\d) [^;()]*\(([A-Z, ]+)\)",
                                        text[text.index("Exit status"):]):
            said.update({name: int(status) for name in names.split(", ")})
        with open(os.path.join(ROOT, "README.md"), encoding="utf-8") as f:
            rows = re.findall(r"^\| (\d) \| .* \| (`E.*`) \|$", f.read(), re.M)
        self.assertEqual(said, {name.strip("`"): int(status)
                                for status, names in rows
                                for name in names.split(", ")})
        self.assertEqual(said, {"EINVAL": 2, "ETOOBIG": 2, "ENOTFOUND": 3,
                                "EEXPIRED": 3, "EFENCED": 3})
        with open(os.path.join(ROOT, "store/base/errors.h"),
                  encoding="utf-8") as f:
            codes = re.findall(r"^    X\((E\w+), \d+,", f.read(), re.M)
        self.assertGreater(len(codes), 30)
        codes.remove("EEND")  # The end of a stream, and no error.
        for code in codes:
            node.refusal.error = code
            node.errors = {"x": (code, grpc.StatusCode.UNKNOWN, "refused")}
            self.all_exit_with(node, code, said.get(code, 1))

    def all_exit_with(self, node, code, status):
        for args in (["sos", "write", "x"], ["sos", "read", "x"],
                     ["sos", "stat", "x"], ["sos", "rm", "x"],
                     ["put", "k", "v"], ["get", "k"], ["log"],
                     ["log", "compact", "--before", "1"], ["log", "import"],
                     ["send", "x"], ["broadcast", "x"], ["stream-send"],
                     ["stream-broadcast"], ["sem", "ls"],
                     ["sem", "acquire", "x", "--limit", "1", "--ttl", "1s"],
                     ["sem", "release", "x", "1"],
                     ["sem", "revoke", "x", "1"],
                     ["lock", "run", "x", "--", "true"],
                     ["sem", "run", "x", "--limit", "1", "--", "true"]):
            with self.subTest(code=code, args=args):
                result = hedgectl("--timeout", "300ms", *args, node=node,
                                  data=b'{"key":"k","value":""}\n')
                self.assert_status(result, 125 if "run" in args else status)

    def test_no_room_for_the_result(self):
        node = self.fake()
        with open("/dev/full", "wb") as full:
            result = subprocess.run(
                [HEDGECTL, "-n", node.id, "-ojson", "members"], stdout=full,
                stderr=subprocess.PIPE, check=False, timeout=20,
                env=os.environ)
        self.assertEqual(result.returncode, 1)
        self.assertIn(b"cannot write the result", result.stderr)


if __name__ == "__main__":
    main()
