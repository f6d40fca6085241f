"""The examples do what their first lines say, with the installed headers and
library alone."""
import os
import subprocess
import tempfile
import unittest

from hedge_harness import BIN, free_ports, main


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


if __name__ == "__main__":
    main()
