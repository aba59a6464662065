package stack

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"github.com/compose-spec/compose-go/v2/schema"
	"go.yaml.in/yaml/v4"
)

// document is one YAML file, kept as nodes to tell where a key stands.
type document struct {
	// name for messages.
	name string
	// roots of the YAML documents in the file.
	roots []*yaml.Node
	// visits counts nodes, aliases unfolded.
	visits int
	// cost of interpolating all of it.
	cost int
}

// parseDocument reads a file and bounds what it unfolds to. Errors name file and line.
func parseDocument(name string, content []byte) (*document, error) {
	d := &document{name: name}
	decoder := yaml.NewDecoder(bytes.NewReader(content))
	for {
		var root yaml.Node
		err := decoder.Decode(&root)
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return nil, d.yamlError(err)
		}
		if err := d.bound(&root, 0); err != nil {
			return nil, err
		}
		d.roots = append(d.roots, &root)
	}
	return d, nil
}

// yamlError puts file and line where editors look for them.
func (d *document) yamlError(err error) error {
	text := strings.TrimPrefix(err.Error(), "yaml: ")
	if m := regexp.MustCompile(`(?s)^(.*?)line (\d+)(?:, column \d+)?: (.*)$`).FindStringSubmatch(text); m != nil {
		return fmt.Errorf("%s:%s: %s", d.name, m[2], strings.TrimSpace(m[3]))
	}
	return fmt.Errorf("%s: %s", d.name, text)
}

// bound refuses what is nested too deeply or unfolds to too much, like an alias that holds itself.
func (d *document) bound(n *yaml.Node, depth int) error {
	d.visits++
	if d.visits > maxNodes {
		return fmt.Errorf("%s:%d: the file unfolds to more than %d values: use fewer aliases", d.name, n.Line, maxNodes)
	}
	if depth > maxDepth {
		return fmt.Errorf("%s:%d: nested deeper than %d levels, or an alias that holds itself", d.name, n.Line, maxDepth)
	}
	if n.Kind == yaml.AliasNode {
		return d.bound(n.Alias, depth+1)
	}
	if d.cost += substitutionCost(n.Value); d.cost > maxSubstitution {
		return fmt.Errorf("%s:%d: too many variables in long values: put such text into a config file", d.name, n.Line)
	}
	for _, c := range n.Content {
		if err := d.bound(c, depth+1); err != nil {
			return err
		}
	}
	return nil
}

// values decodes the documents of the file as compose-go does. What it refuses later is left out here.
func (d *document) values() ([]map[string]any, error) {
	var out []map[string]any
	for _, root := range d.roots {
		var v any
		if err := root.Decode(&v); err != nil {
			return nil, d.yamlError(err)
		}
		if m, ok := v.(map[string]any); ok {
			out = append(out, m)
		}
	}
	return out, nil
}

// position returns file:line of the deepest part of a path that the file has, and how deep that is.
func (d *document) position(path []string) (string, int) {
	best, line := 0, 0
	for _, root := range d.roots {
		if len(root.Content) == 0 {
			continue
		}
		if depth, l := find(root.Content[0], path, 0); depth > best {
			best, line = depth, l
		}
	}
	return d.name + ":" + strconv.Itoa(line), best
}

// find follows a path into a node and returns how far it leads and on which line that is.
func find(n *yaml.Node, path []string, depth int) (int, int) {
	if n.Kind == yaml.AliasNode {
		n = n.Alias
	}
	line := n.Line
	if depth >= len(path) {
		return depth, line
	}
	if n.Kind == yaml.SequenceNode {
		if i, err := strconv.Atoi(path[depth]); err == nil && i < len(n.Content) {
			return find(n.Content[i], path, depth+1)
		}
		return depth, line
	}
	if n.Kind != yaml.MappingNode {
		return depth, line
	}
	best := depth
	for i := 0; i+1 < len(n.Content); i += 2 {
		key, value := n.Content[i], n.Content[i+1]
		switch {
		case key.Value == "<<":
			for _, merged := range mergedNodes(value) {
				if d, l := find(merged, path, depth); d > best {
					best, line = d, l
				}
			}
		case key.Value == path[depth]:
			d, l := find(value, path, depth+1)
			if d == depth+1 { // the line of the key, not that of its value.
				l = key.Line
			}
			return d, l
		}
	}
	return best, line
}

// mergedNodes lists the mappings that a merge key brings in.
func mergedNodes(value *yaml.Node) []*yaml.Node {
	if value.Kind == yaml.AliasNode {
		value = value.Alias
	}
	if value.Kind == yaml.SequenceNode {
		return value.Content
	}
	return []*yaml.Node{value}
}

// specKeys is the tree of all keys that the Compose Specification has. "*" stands for any name, "[]" for an item of a list.
type specKeys map[string]specKeys

// newSpecKeys builds the tree from the specification's schema.
func newSpecKeys() specKeys {
	root := specKeys{}
	for _, p := range schema.AttributePaths() {
		n := root
		for _, part := range p.Parts() {
			if n[part] == nil {
				n[part] = specKeys{}
			}
			n = n[part]
		}
	}
	return root
}

// unknownKeys returns what the file has and the specification has not, with the line and the nearest key that there is.
func (d *document) unknownKeys(spec specKeys) []string {
	var out []string
	for _, root := range d.roots {
		for _, c := range root.Content {
			out = append(out, d.unknownBelow(c, spec, nil)...)
		}
	}
	return out
}

// unknownBelow checks the keys of a node. A level at which the specification allows anything is not followed.
func (d *document) unknownBelow(n *yaml.Node, spec specKeys, path []string) []string {
	if n.Kind == yaml.AliasNode {
		n = n.Alias
	}
	var out []string
	switch {
	case len(spec) == 0:
	case n.Kind == yaml.SequenceNode:
		for _, c := range n.Content {
			out = append(out, d.unknownBelow(c, spec["[]"], path)...)
		}
	case n.Kind == yaml.MappingNode:
		for i := 0; i+1 < len(n.Content); i += 2 {
			key, value := n.Content[i], n.Content[i+1]
			named, free := spec["*"]
			below, known := spec[key.Value]
			switch {
			case key.Value == "<<":
				for _, merged := range mergedNodes(value) {
					out = append(out, d.unknownBelow(merged, spec, path)...)
				}
			case known:
				out = append(out, d.unknownBelow(value, below, append(slices.Clone(path), key.Value))...)
			case free:
				out = append(out, d.unknownBelow(value, named, append(slices.Clone(path), key.Value))...)
			case strings.HasPrefix(key.Value, "x-"):
			case onlyItems(spec): // a mapping where a list is meant: the schema says so better.
			default:
				under := ""
				if len(path) > 0 {
					under = strings.Join(path, ".") + ": "
				}
				out = append(out, fmt.Sprintf("%s:%d: %sunknown key %s%s", d.name, key.Line, under, cut(key.Value), didYouMean(key.Value, keysOf(spec))))
			}
		}
	}
	return out
}

// onlyItems says that the specification has a list here.
func onlyItems(spec specKeys) bool { return len(spec) == 1 && spec["[]"] != nil }

// keysOf lists the keys of one level.
func keysOf(spec specKeys) []string {
	var out []string
	for k := range spec {
		if k != "[]" && k != "*" {
			out = append(out, k)
		}
	}
	return out
}
