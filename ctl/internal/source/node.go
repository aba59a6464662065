package source

import (
	"iter"

	"go.yaml.in/yaml/v3"
)

// follow returns the node that an alias stands for.
func follow(n *yaml.Node) *yaml.Node {
	for range maxDepth {
		if n.Kind != yaml.AliasNode {
			break
		}
		n = n.Alias
	}
	return n
}

// entries yields the keys and values of a mapping, those that it merges in (<<) last and only where they are not overridden.
func entries(n *yaml.Node) iter.Seq2[*yaml.Node, *yaml.Node] {
	return func(yield func(*yaml.Node, *yaml.Node) bool) {
		seen, merged := map[string]bool{}, map[*yaml.Node]bool{}
		var visit func(n *yaml.Node) bool
		visit = func(n *yaml.Node) bool {
			n = follow(n)
			if n.Kind != yaml.MappingNode || merged[n] {
				return true // a mapping has nothing to add a second time, least of all to itself.
			}
			merged[n] = true
			var later []*yaml.Node
			for i := 0; i+1 < len(n.Content); i += 2 {
				key, value := n.Content[i], n.Content[i+1]
				if key.Tag == "!!merge" {
					later = append(later, sources(value)...)
					continue
				}
				if seen[key.Value] {
					continue
				}
				seen[key.Value] = true
				if !yield(key, follow(value)) {
					return false
				}
			}
			for _, m := range later {
				if !visit(m) {
					return false
				}
			}
			return true
		}
		visit(n)
	}
}

// sources returns the mappings that a << names.
func sources(n *yaml.Node) []*yaml.Node {
	if n = follow(n); n.Kind == yaml.SequenceNode {
		return n.Content
	}
	return []*yaml.Node{n}
}

// each calls f for the entries of a mapping until one returns an error.
func each(n *yaml.Node, f func(name string, n *yaml.Node) error) error {
	for key, value := range entries(n) {
		if err := f(key.Value, value); err != nil {
			return err
		}
	}
	return nil
}

// lookup returns the value of a key of a mapping, or nil.
func lookup(n *yaml.Node, name string) *yaml.Node {
	if n == nil {
		return nil
	}
	for key, value := range entries(n) {
		if key.Value == name {
			return value
		}
	}
	return nil
}

// scalar returns the text of a node; "" for nil, null and what is no scalar.
func scalar(n *yaml.Node) string {
	if n == nil || n.Kind != yaml.ScalarNode || n.Tag == "!!null" {
		return ""
	}
	return n.Value
}

// list returns the texts of a scalar or of a list of scalars.
func list(n *yaml.Node) []string {
	if n == nil {
		return nil
	}
	if n.Kind != yaml.SequenceNode {
		return []string{scalar(n)}
	}
	var out []string
	for _, item := range n.Content {
		out = append(out, scalar(follow(item)))
	}
	return out
}
