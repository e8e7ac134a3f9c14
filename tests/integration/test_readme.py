import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()


def test_readme_quickstart_is_the_flow_file_and_prints_what_the_readme_shows() -> None:
    block = re.search(
        r"<!-- flows/quickstart.py -->\n```python\n(.*?)```\n\nprints\n\n```text\n(.*?)```",
        README,
        re.DOTALL,
    )
    assert block is not None
    code, printed = block.groups()
    assert code == (ROOT / "flows" / "quickstart.py").read_text()
    done = subprocess.run(
        [sys.executable, "-m", "bytewax.run", "flows.quickstart:flow"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    assert sorted(done.stdout.splitlines()) == sorted(printed.splitlines())
