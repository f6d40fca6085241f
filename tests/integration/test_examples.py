"""The examples do what their first lines say, with the installed headers and
library alone."""
import os
import re
import subprocess
import tempfile
import unittest

from hedge_harness import BIN, ROOT, free_ports, main


class Examples(unittest.TestCase):
    def test_spill(self):
        program = os.path.join(BIN, "example_spill")
        if not os.path.exists(program):
            self.skipTest("examples are not part of a sanitizer build")
        with tempfile.TemporaryDirectory() as directory:
            done = subprocess.run([program, directory, str(free_ports())],
                                  capture_output=True, text=True, timeout=60)
        self.assertEqual(done.returncode, 0, done.stderr)
        self.assertEqual(done.stdout, "499999500000\n")

    def test_tour(self):
        program = os.path.join(BIN, "example_tour")
        if not os.path.exists(program):
            self.skipTest("examples are not part of a sanitizer build")
        with tempfile.TemporaryDirectory() as directory:
            done = subprocess.run([program, directory, str(free_ports())],
                                  capture_output=True, text=True, timeout=60)
        self.assertEqual(done.returncode, 0, done.stderr)
        self.assertEqual(done.stdout.splitlines(), [
            "colour was red", "colour was green", "colour was blue",
            "the leader says 42", "a member heard you",
            "the stream returns line 1", "the stream returns line 2",
            "holding the printer, surely",
            "100000 records written", "100000 records read and discarded"])


class Installed(unittest.TestCase):
    """What a program needs that is not built here, from an installation."""

    def setUp(self):
        self.build = os.path.dirname(BIN)
        if not os.path.exists(os.path.join(self.build, "lib", "libhedge.so")):
            self.skipTest("a sanitizer build has no shared library")
        directory = tempfile.TemporaryDirectory()
        self.addCleanup(directory.cleanup)
        self.prefix = os.path.join(directory.name, "usr")
        self.run_checked("cmake", "--install", self.build, "--prefix",
                         self.prefix)

    def run_checked(self, *argv, **env):
        done = subprocess.run(argv, capture_output=True, text=True,
                              timeout=120, env=dict(os.environ, **env))
        self.assertEqual(done.returncode, 0, done.stdout + done.stderr)
        return done.stdout

    def pkg_config(self, *args):
        return self.run_checked("pkg-config", *args, "hedge",
                                PKG_CONFIG_PATH=os.path.join(
                                    self.prefix, "lib", "pkgconfig")).split()

    def compile(self, name, *flags):
        program = os.path.join(self.prefix, name)
        self.run_checked("cc", os.path.join(ROOT, "tools/examples/spill.c"),
                         "-o", program, *flags)
        return program

    def check(self, program, **env):
        out = self.run_checked(program, os.path.join(self.prefix, "data"),
                               str(free_ports()), **env)
        self.assertEqual(out, "499999500000\n")

    def test_files(self):
        for path in ("bin/hedged", "bin/hedgectl", "include/hedge/hedge.h",
                     "include/hedge/errors.h", "lib/libhedge.so",
                     "lib/libhedge.a", "lib/pkgconfig/hedge.pc"):
            self.assertTrue(os.path.exists(os.path.join(self.prefix, path)),
                            path)
        folder = os.path.join(self.prefix, "share/hedge/proto")
        names = os.listdir(folder)
        self.assertLessEqual({"hedge.proto", "log.proto", "locks.proto",
                              "messages.proto"}, set(names))
        self.run_checked("protoc", f"--proto_path={folder}",
                         f"--descriptor_set_out={self.prefix}/all", *names)
        version = self.run_checked(os.path.join(self.prefix, "bin/hedgectl"),
                                   "--version").split()[1]
        self.assertEqual(self.pkg_config("--modversion"), [version])

    def test_pkg_config(self):
        program = self.compile("shared", *self.pkg_config("--cflags",
                                                          "--libs"))
        self.check(program, LD_LIBRARY_PATH=os.path.join(self.prefix, "lib"))

    def test_pkg_config_static(self):
        """libhedge.a needs what Requires.private and Libs.private say."""
        for name in os.listdir(os.path.join(self.prefix, "lib")):
            if ".so" in name:
                os.remove(os.path.join(self.prefix, "lib", name))
        program = self.compile("static", *self.pkg_config("--static",
                                                          "--cflags",
                                                          "--libs"))
        self.check(program)

    def test_names(self):
        """Neither library gives away a name that is not the API's."""
        for name, flag in (("libhedge.so", "-D"), ("libhedge.a", "-g")):
            out = self.run_checked("nm", flag, "--defined-only", os.path.join(
                self.prefix, "lib", name))
            names = [line.split()[2] for line in out.splitlines()
                     if len(line.split()) == 3]
            self.assertIn("hedge_node_start", names)
            self.assertEqual([n for n in names
                              if not re.match("hedge_[a-z]", n)], [])


if __name__ == "__main__":
    main()
