"""An HTML page, read as a browser would."""

from html.parser import HTMLParser


class Read(HTMLParser):
    """sections: {id: all its text}. svgs: for each, its elements as [name, attributes, text]. Fails where tags do not
    match."""

    def __init__(self, text: str):
        super().__init__()
        self.open, self.tags, self.sections, self.svgs, self.said = [], [], {}, [], []
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
        if name == "svg":
            self.svgs.append([])
        if "svg" in self.open:
            self.svgs[-1].append([name, dict(attributes), ""])

    def handle_startendtag(self, name, attributes):
        assert "svg" in self.open, f"<{name}/> is not HTML"
        self.handle_starttag(name, attributes)
        self.open.pop()

    def handle_endtag(self, name):
        assert self.open.pop() == name

    def handle_data(self, data):
        self.said.append(data)
        if "section" in self.open:
            self.sections[self.section] += data
        if "svg" in self.open and self.open[-1] == "text":
            self.svgs[-1][-1][2] += data
