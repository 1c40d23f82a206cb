"""The repository's pages of Markdown, taken apart: headings, links, blocks of code, commands."""

import re
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

ROOT = Path(__file__).parent.parent.parent
FENCED = re.compile(r"^```(\w*)\n(.*?)^```$", flags=re.S | re.M)
MARKED = re.compile(r"^<!-- (test|example)(?:: ([\w -]+))? -->\n```(\w+)\n(.*?)^```$", flags=re.S | re.M)


@dataclass(frozen=True)
class Block:
    """A block of code and the mark in the line before it: "test" with what it needs, or "example" with its name."""

    mark: str
    argument: str
    language: str
    code: str


@dataclass(frozen=True)
class Page:
    """One file of Markdown; `name` is relative to the repository."""

    name: str

    @property
    def path(self) -> Path:
        return ROOT / self.name

    @cached_property
    def text(self) -> str:
        return self.path.read_text(encoding="utf-8")

    @cached_property
    def prose(self) -> str:
        """Without the blocks of code."""
        return FENCED.sub("", self.text)

    @cached_property
    def anchors(self) -> set[str]:
        """What `page.md#anchor` may name: the headings, as GitHub spells them."""
        anchors: set[str] = set()
        for heading in re.findall(r"^#+ (.+)$", self.prose, flags=re.M):
            spelled = re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")
            repeated = sum(re.fullmatch(rf"{re.escape(spelled)}(-\d+)?", anchor) is not None for anchor in anchors)
            anchors.add(f"{spelled}-{repeated}" if repeated else spelled)
        return anchors

    @property
    def links(self) -> list[str]:
        """Targets of links and pictures, but for those of other sites."""
        targets = re.findall(r"\]\(([^)\s]+)\)", self.prose)
        return [target for target in targets if not re.match(r"\w+:", target)]

    def count(self, language: str) -> int:
        return sum(found == language for found, _ in FENCED.findall(self.text))

    def marked(self, mark: str) -> list[Block]:
        return [block for block in (Block(*found) for found in MARKED.findall(self.text)) if block.mark == mark]

    @property
    def command_lines(self) -> list[str]:
        """Lines of the shell blocks, continued ones joined and comments cut off, and inline code that is a command."""
        blocks = [code for language, code in FENCED.findall(self.text) if language == "bash"]
        lines = "\n".join(blocks).replace("\\\n", " ").splitlines()
        inline = [" ".join(code.split()) for code in re.findall(r"`([^`]+)`", self.prose)]
        lines += [code for code in inline if re.match(r"(python|accelerate|pip|make) ", code)]
        return [re.split(r"(?:^|\s)#", line)[0].strip() for line in lines]


def documentation() -> list[Page]:
    """README, every page in docs/, and whatever else a reader of the repository is sent to."""
    docs = sorted(path.relative_to(ROOT).as_posix() for path in (ROOT / "docs").glob("*.md"))
    return [Page(name) for name in ("README.md", *docs, "CONTRIBUTING.md", "CHANGELOG.md", "benchmarks/RESULTS.md")]
