"""A page of HTML as tests read it."""

from html.parser import HTMLParser

VOID = {"meta", "br", "link", "img"}


class Page(HTMLParser):
    """Checks that tags are nested, and keeps texts by class, headings, and everything that names something outside."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.open: list[tuple[str, str]] = []
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.columns: list[list[str]] = []
        self.articles: list[str] = []
        self.text = ""
        self.feed(page)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs
        if tag not in VOID:
            kind = dict(attrs).get("class") or ""
            self.open.append((tag, kind))
            if tag == "article":
                self.articles.append("")
            if kind.startswith("e "):
                self.columns.append([kind[2:]])

    def handle_endtag(self, tag):
        assert self.open.pop()[0] == tag

    def handle_data(self, data):
        self.text += data
        if any(tag == "article" for tag, _ in self.open):
            self.articles[-1] += data
        if any(kind.startswith("e ") for _, kind in self.open):
            self.columns[-1].append(data)
