package definition

import (
	"bytes"
	"errors"
	"io"
	"regexp"
	"strconv"
	"strings"

	"go.yaml.in/yaml/v4"
)

const (
	// MaxSource is the most that a file may have, in bytes.
	MaxSource = 128 << 10
	maxNodes  = 20_000
	maxDepth  = 40
)

// parse reads the file into nodes, and says whether there is a mapping to go on with.
func (d *Document) parse(source []byte) bool {
	if len(source) > MaxSource {
		d.found(nil, codeYAML, "the file has %d bytes, more than %d: split the procedure", len(source), MaxSource)
		return false
	}
	decoder := yaml.NewDecoder(bytes.NewReader(source))
	var root, more yaml.Node
	if err := decoder.Decode(&root); err != nil {
		if errors.Is(err, io.EOF) {
			d.found(nil, codeYAML, "the file is empty: it begins with api: %s", apiVersion)
			return false
		}
		d.yamlError(err)
		return false
	}
	if err := decoder.Decode(&more); !errors.Is(err, io.EOF) {
		if err != nil {
			d.yamlError(err)
			return false
		}
		d.found(&more, codeYAML, "the file has a second document: one file holds one procedure")
		return false
	}
	if len(root.Content) != 1 || root.Content[0].Kind != yaml.MappingNode {
		d.found(&root, codeYAML, "the file is no mapping: it begins with api: %s", apiVersion)
		return false
	}
	d.root = root.Content[0]
	count := 0
	return d.plain(d.root, 0, &count)
}

var yamlLine = regexp.MustCompile(`(?s)line (\d+)(?:, column (\d+))?: (.*)$`)

func (d *Document) yamlError(err error) {
	text, place := strings.TrimPrefix(err.Error(), "yaml: "), &yaml.Node{}
	if m := yamlLine.FindStringSubmatch(text); m != nil {
		place.Line, _ = strconv.Atoi(m[1])
		place.Column, _ = strconv.Atoi(m[2])
		text = m[3]
	}
	d.found(place, codeYAML, "%s", strings.TrimSpace(text))
}

// plain refuses what hides from the reader what the file says: keys given twice, aliases, merged keys, keys that are no words, tags.
func (d *Document) plain(n *yaml.Node, depth int, count *int) bool {
	if *count++; *count > maxNodes || depth > maxDepth {
		d.found(n, codeYAML, "the file holds more than %d values, or nests deeper than %d", maxNodes, maxDepth)
		return false
	}
	if n.Kind == yaml.AliasNode || n.Anchor != "" {
		d.found(n, codeYAML, "anchors and aliases are not taken: write the value where it belongs")
		return false
	}
	if n.Style&yaml.TaggedStyle != 0 {
		d.found(n, codeYAML, "tags like %s are not taken: what a value is, its field says", n.Tag)
		return false
	}
	ok, seen := true, map[string]*yaml.Node{}
	for i, child := range n.Content {
		if n.Kind == yaml.MappingNode && i%2 == 0 {
			if child.Kind != yaml.ScalarNode || child.Value == "<<" {
				d.found(child, codeYAML, "a key must be a word")
				return false
			}
			if before := seen[child.Value]; before != nil {
				d.found(child, codeDuplicate, "%q is here twice, first on line %d", child.Value, before.Line)
				ok = false
			}
			seen[child.Value] = child
		}
		ok = d.plain(child, depth+1, count) && ok
	}
	return ok
}

// child returns the value of a key of a mapping.
func child(n *yaml.Node, key string) *yaml.Node {
	if n == nil || n.Kind != yaml.MappingNode {
		return nil
	}
	for i := 0; i+1 < len(n.Content); i += 2 {
		if n.Content[i].Value == key {
			return n.Content[i+1]
		}
	}
	return nil
}
