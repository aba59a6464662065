package output

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"strings"
	"unicode/utf8"

	"go.yaml.in/yaml/v3"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
)

// Format is how data is written.
type Format string

// The formats of -o.
const (
	FormatTable Format = "table"
	FormatWide  Format = "wide"
	FormatJSON  Format = "json"
	FormatYAML  Format = "yaml"
	FormatName  Format = "name"
)

// Formats returns the formats in the order in which they are documented.
func Formats() []string {
	return []string{string(FormatTable), string(FormatWide), string(FormatJSON), string(FormatYAML), string(FormatName)}
}

// Column is one column of a table.
type Column struct {
	Title string
	// Wide columns show with -o wide only.
	Wide bool
	// State columns are coloured by their word.
	State bool
}

// Data is what a command has to say on standard output, for every format.
type Data struct {
	// Kind of the items, like "Host".
	Kind string
	// Items are written as protojson.
	Items []proto.Message
	// Names like host/web-1, one for each item.
	Names []string
	// Columns and Rows make up the table.
	Columns []Column
	Rows    [][]string
	// Empty is written to Notes instead of a table without rows.
	Empty string
	// Text replaces the table where one item is shown in full.
	Text func(w io.Writer, wide bool)
	// Extra are further lists beside the items, like the hosts that did not answer.
	Extra map[string][]proto.Message
}

// Printer writes data in one format.
type Printer struct {
	Out    io.Writer
	Notes  io.Writer
	Format Format
	Style  Style
}

// Print writes d.
func (p *Printer) Print(d Data) error {
	switch p.Format {
	case FormatJSON:
		doc, err := document(d)
		if err != nil {
			return err
		}
		return p.write(append(doc, '\n'))
	case FormatYAML:
		doc, err := document(d)
		if err != nil {
			return err
		}
		if doc, err = toYAML(doc); err != nil {
			return err
		}
		return p.write(doc)
	case FormatName:
		var b strings.Builder
		for _, n := range d.Names {
			b.WriteString(Clean(n) + "\n")
		}
		return p.write([]byte(b.String()))
	}
	wide := p.Format == FormatWide
	var b bytes.Buffer
	switch {
	case d.Text != nil:
		d.Text(&b, wide)
	case len(d.Rows) == 0:
		if d.Empty != "" {
			_, err := fmt.Fprintln(p.Notes, d.Empty)
			return err
		}
	default:
		WriteTable(&b, d.Columns, d.Rows, wide, p.Style)
	}
	return p.write(b.Bytes())
}

func (p *Printer) write(b []byte) error {
	if _, err := p.Out.Write(b); err != nil {
		return fmt.Errorf("write to standard output: %w", err)
	}
	return nil
}

// WriteTable writes aligned columns, two spaces apart, without trailing spaces.
func WriteTable(w io.Writer, columns []Column, rows [][]string, wide bool, style Style) {
	var shown []int
	for i, c := range columns {
		if wide || !c.Wide {
			shown = append(shown, i)
		}
	}
	widths := make([]int, len(columns))
	cells := make([][]string, len(rows))
	for _, i := range shown {
		widths[i] = utf8.RuneCountInString(columns[i].Title)
	}
	for r, row := range rows {
		cells[r] = make([]string, len(columns))
		for _, i := range shown {
			cells[r][i] = cell(row[i])
			widths[i] = max(widths[i], utf8.RuneCountInString(cells[r][i]))
		}
	}
	line := func(text func(i int) string, tone func(i int, s string) Tone) {
		var b strings.Builder
		for n, i := range shown {
			s := text(i)
			b.WriteString(style.Paint(tone(i, s), s))
			if n < len(shown)-1 {
				b.WriteString(strings.Repeat(" ", widths[i]-utf8.RuneCountInString(s)+2))
			}
		}
		_, _ = fmt.Fprintln(w, strings.TrimRight(b.String(), " "))
	}
	line(func(i int) string { return columns[i].Title }, func(int, string) Tone { return ToneBold })
	for r := range rows {
		line(func(i int) string { return cells[r][i] }, func(i int, s string) Tone {
			if columns[i].State {
				return ToneOf(s)
			}
			return TonePlain
		})
	}
}

// cell is never empty, so that awk counts the columns right.
func cell(text string) string {
	if text = Clean(text); text != "" {
		return text
	}
	return "-"
}

// JSONLine returns m as one line of JSON.
func JSONLine(m proto.Message) ([]byte, error) {
	raw, err := protojson.MarshalOptions{EmitDefaultValues: true}.Marshal(m)
	if err != nil {
		return nil, fmt.Errorf("encode %s: %w", m.ProtoReflect().Descriptor().Name(), err)
	}
	var b bytes.Buffer
	if err := json.Compact(&b, raw); err != nil { // protojson varies its white space on purpose.
		return nil, fmt.Errorf("encode %s: %w", m.ProtoReflect().Descriptor().Name(), err)
	}
	return b.Bytes(), nil
}

func document(d Data) ([]byte, error) {
	list := func(items []proto.Message) ([]json.RawMessage, error) {
		out := make([]json.RawMessage, 0, len(items))
		for _, m := range items {
			line, err := JSONLine(m)
			if err != nil {
				return nil, err
			}
			out = append(out, line)
		}
		return out, nil
	}
	items, err := list(d.Items)
	if err != nil {
		return nil, err
	}
	kind, err := json.Marshal(d.Kind)
	if err != nil {
		return nil, fmt.Errorf("encode kind %q: %w", d.Kind, err)
	}
	var b bytes.Buffer
	fmt.Fprintf(&b, `{"kind":%s,"items":`, kind)
	raw, err := json.Marshal(items)
	if err != nil {
		return nil, fmt.Errorf("encode %s: %w", d.Kind, err)
	}
	b.Write(raw)
	for _, key := range sortedKeys(d.Extra) {
		more, err := list(d.Extra[key])
		if err != nil {
			return nil, err
		}
		if raw, err = json.Marshal(more); err != nil {
			return nil, fmt.Errorf("encode %s: %w", key, err)
		}
		fmt.Fprintf(&b, `,%q:%s`, key, raw)
	}
	b.WriteString("}")
	var out bytes.Buffer
	if err := json.Indent(&out, b.Bytes(), "", "  "); err != nil {
		return nil, fmt.Errorf("encode %s: %w", d.Kind, err)
	}
	return out.Bytes(), nil
}

// toYAML turns JSON into YAML and keeps the order of its keys.
func toYAML(doc []byte) ([]byte, error) {
	var node yaml.Node
	if err := yaml.Unmarshal(doc, &node); err != nil {
		return nil, fmt.Errorf("encode as YAML: %w", err)
	}
	plain(&node)
	var b bytes.Buffer
	enc := yaml.NewEncoder(&b)
	enc.SetIndent(2)
	if err := enc.Encode(&node); err != nil {
		return nil, fmt.Errorf("encode as YAML: %w", err)
	}
	return b.Bytes(), nil
}

func plain(n *yaml.Node) {
	n.Style = 0
	for _, c := range n.Content {
		plain(c)
	}
	if len(n.Content) == 0 && n.Kind != yaml.ScalarNode {
		n.Style = yaml.FlowStyle
	}
}
