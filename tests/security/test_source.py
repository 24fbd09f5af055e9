"""What the project's own source never says: ways to run code that lies in a file."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[2]
FORBIDDEN_CALLS = {
    "eval",
    "exec",
    "compile",
    "pickle.load",
    "pickle.loads",
    "pickle.Unpickler",
    "cloudpickle.load",
    "cloudpickle.loads",
    "joblib.load",
    "marshal.load",
    "marshal.loads",
    "shelve.open",
    "dill.load",
    "yaml.load",
    "yaml.unsafe_load",
    "yaml.full_load",
    "os.system",
    "os.popen",
    "shutil.unpack_archive",
    "numpy.fromregex",
}
FORBIDDEN_METHODS = {"extractall", "extract"}
FORBIDDEN_KEYWORDS = {("weights_only", False), ("allow_pickle", True), ("shell", True)}


def findings(text: str, where: str) -> list[str]:
    found = []
    for node in ast.walk(ast.parse(text)):
        if not isinstance(node, ast.Call):
            continue
        name = ast.unparse(node.func)
        keywords = {
            (word.arg, word.value.value) for word in node.keywords if isinstance(word.value, ast.Constant)
        }
        bad = name in FORBIDDEN_CALLS or name.rpartition(".")[2] in FORBIDDEN_METHODS
        bad = bad or bool(keywords & FORBIDDEN_KEYWORDS)
        if name == "torch.load" and ("weights_only", True) not in keywords:
            bad = True
        if bad:
            found.append(f"{where}:{node.lineno}: {ast.unparse(node)[:80]}")
    return found


def test_nothing_in_the_source_runs_what_a_file_says() -> None:
    found = []
    for folder in ("raytrain", "tune", "benchmarks"):
        for path in sorted((REPOSITORY / folder).rglob("*.py")):
            found += findings(path.read_text(), str(path.relative_to(REPOSITORY)))
    assert found == []


@pytest.mark.parametrize(
    "text",
    [
        "torch.load(f)",
        "torch.load(f, weights_only=False)",
        "np.load(f, allow_pickle=True)",
        "yaml.load(f)",
        "archive.extractall(p)",
        "eval(x)",
        "pickle.load(f)",
        "subprocess.run(x, shell=True)",
    ],
)
def test_the_search_finds_what_it_looks_for(text: str) -> None:
    assert len(findings(text, "here")) == 1


@pytest.mark.parametrize("text", ["torch.load(f, weights_only=True)", "np.load(f)", "model.eval()"])
def test_the_search_leaves_the_rest_alone(text: str) -> None:
    assert findings(text, "here") == []
