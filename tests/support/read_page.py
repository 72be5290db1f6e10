"""An HTML page, read as a browser would."""

from html.parser import HTMLParser


class Read(HTMLParser):
    """sections: {id: all its text}. rows: the cells of each row of a table, by section. svgs: the texts in each.
    Fails where tags do not match."""

    def __init__(self, text: str):
        super().__init__()
        self.open, self.tags, self.sections, self.svgs, self.said = [], [], {}, [], []
        self.rows: dict[str, list[list[str]]] = {}
        self.feed(text)
        self.close()
        assert self.open == [], "not closed"

    def handle_starttag(self, name, attributes):
        self.tags.append((name, dict(attributes)))
        if name != "meta":
            self.open.append(name)
        if name == "section":
            self.section = dict(attributes)["id"]
            self.sections[self.section] = ""
            self.rows[self.section] = []
        if name == "svg":
            self.svgs.append([])
        if name == "tr":
            self.rows[self.section].append([])
        if name in ("td", "th"):
            self.rows[self.section][-1].append("")

    def handle_startendtag(self, name, attributes):
        assert "svg" in self.open, f"<{name}/> is not HTML"
        self.tags.append((name, dict(attributes)))

    def handle_endtag(self, name):
        assert self.open.pop() == name

    def handle_data(self, data):
        text = " ".join(data.split())
        self.said.append(text)
        if "svg" in self.open:
            self.svgs[-1].append(text)
        elif "section" in self.open:
            self.sections[self.section] += text
            if {"td", "th"} & set(self.open):
                self.rows[self.section][-1][-1] += text
