"""The C examples of README's API table compile, against what is installed,
and work, in the order of the table."""
import os
import re
import subprocess
import tempfile
import unittest

from hedge_harness import BIN, ROOT, free_ports, main

HEADERS = ("hedge/hedge.h", "stdio.h", "stdlib.h", "string.h", "unistd.h")


def api_section():
    with open(os.path.join(ROOT, "README.md"), encoding="utf-8") as f:
        return re.search(r"^## API$(.*?)^## ", f.read(), re.S | re.M).group(1)


def examples(section):
    rows = re.findall(r"^\| (.*) \| (.*) \| `(.*)` \|$", section, re.M)
    return [(name, code) for name, _, code in rows]


def program(section):
    shared = re.search(r"^```c\n(.*?)^```$", section, re.S | re.M).group(1)
    out = ["#define _GNU_SOURCE"]
    out += [f"#include <{header}>" for header in HEADERS]
    out += [shared, "int main(void)", "{", "hedge_process_setup();"]
    for name, code in examples(section):
        name = name.replace("`", "")
        out += ["{", code, "}", "if (rv != 0) {",
                f'fprintf(stderr, "{name}: %d %s\\n", rv, e.text);',
                "return 1;", "}", f'puts("-- {name}");']
    return "\n".join(out + ["return 0;", "}", ""])


class Readme(unittest.TestCase):
    def test_api_examples(self):
        section = api_section()
        names = examples(section)
        self.assertGreater(len(names), 30)
        library = os.path.join(os.path.dirname(BIN), "lib")
        if not os.path.exists(os.path.join(library, "libhedge.so")):
            self.skipTest("a sanitizer build has no shared library")
        port = free_ports()
        text = program(section).replace("127.0.0.1:8080", f"127.0.0.1:{port}")
        text = text.replace("127.0.0.1:8081", f"127.0.0.1:{port + 1}")
        with tempfile.TemporaryDirectory() as directory:
            source = os.path.join(directory, "api.c")
            with open(source, "w", encoding="utf-8") as f:
                f.write(text)
            binary = os.path.join(directory, "api")
            include = os.path.join(os.path.dirname(BIN), "include")
            built = subprocess.run(
                ["cc", "-Wall", "-Wextra", "-Werror", "-I", include, source,
                 "-L", library, "-lhedge", f"-Wl,-rpath,{library}",
                 "-o", binary], capture_output=True, text=True, timeout=120)
            self.assertEqual(built.returncode, 0, built.stderr)
            done = subprocess.run(
                [binary], capture_output=True, text=True, timeout=120,
                env=dict(os.environ, XDG_STATE_HOME=directory))
        self.assertEqual(done.returncode, 0, done.stdout + done.stderr)
        ran = [line for line in done.stdout.splitlines()
               if line.startswith("-- ")]
        self.assertEqual(len(ran), len(names))


if __name__ == "__main__":
    main()
