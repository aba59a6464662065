package stack

import (
	"reflect"
	"strings"
	"testing"

	"github.com/compose-spec/compose-go/v2/schema"
	"github.com/compose-spec/compose-go/v2/types"
)

// TestEveryKeyHasATreatment walks compose-go's types: a field that the next version brings fails here until someone decides about it.
func TestEveryKeyHasATreatment(t *testing.T) {
	rules := keyRules()
	used := map[string]bool{}
	root := reflect.TypeFor[types.Project]()
	for i := range root.NumField() {
		if name := yamlName(root.Field(i)); name != "" {
			needRules(t, rules, used, root.Field(i).Type, name)
		}
	}
	for key := range rules {
		if !used[key] {
			t.Errorf("rule for %s, which compose-go does not have", key)
		}
	}
}

// needRules asks for a rule for a key and, if it is taken, for all keys below it.
func needRules(t *testing.T, rules map[string]rule, used map[string]bool, typ reflect.Type, pattern string) {
	r, ok := rules[pattern]
	used[pattern] = true
	switch {
	case !ok:
		t.Errorf("%s has no rule", pattern)
	case r.treatment == taken:
		needRulesBelow(t, rules, used, typ, pattern)
	case r.note == "":
		t.Errorf("%s is not taken, and its rule does not say what to do", pattern)
	}
}

func needRulesBelow(t *testing.T, rules map[string]rule, used map[string]bool, typ reflect.Type, pattern string) {
	switch typ.Kind() {
	case reflect.Pointer:
		needRulesBelow(t, rules, used, typ.Elem(), pattern)
	case reflect.Slice:
		if hasStruct(typ.Elem()) {
			needRulesBelow(t, rules, used, typ.Elem(), pattern)
		}
	case reflect.Map:
		if hasStruct(typ.Elem()) {
			needRules(t, rules, used, typ.Elem(), pattern+".*")
		}
	case reflect.Struct:
		if pattern == "services.*.build" {
			return
		}
		for i := range typ.NumField() {
			f := typ.Field(i)
			switch {
			case f.Anonymous:
				needRulesBelow(t, rules, used, f.Type, pattern)
			case f.Name == "Extensions" || yamlName(f) == "" && !f.IsExported():
			case yamlName(f) == "" && !strings.Contains(f.Tag.Get("yaml"), "-"):
				t.Errorf("%s: field %s has no key", pattern, f.Name)
			case yamlName(f) != "":
				needRules(t, rules, used, f.Type, pattern+"."+yamlName(f))
			}
		}
	}
}

// TestEveryKeyOfTheSpecificationIsDecoded finds keys that the schema allows and compose-go would not decode: they would be dropped.
func TestEveryKeyOfTheSpecificationIsDecoded(t *testing.T) {
	rules := keyRules()
	for _, p := range schema.AttributePaths() {
		key := strings.ReplaceAll(string(p), ".[]", "")
		top, _, _ := strings.Cut(key, ".")
		switch top {
		case "jobs", "models", "include", "version", "name": // refused as a whole, or settled before.
			continue
		}
		if strings.HasPrefix(key, "services.*.build.") { // told about as a whole: Muster does not build.
			continue
		}
		if !known(rules, key) && !freeText(key) {
			t.Errorf("the specification has %s, for which there is no rule", key)
		}
	}
}

// known says that a key, or one above it that is not taken, has a rule.
func known(rules map[string]rule, key string) bool {
	for k := key; k != ""; {
		if r, ok := rules[k]; ok && (k == key || r.treatment != taken) {
			return true
		}
		i := strings.LastIndex(k, ".")
		if i < 0 {
			return false
		}
		k = k[:i]
	}
	return false
}

// freeText says that a key is a name that the user chooses, in a mapping of texts, or the old way to write external: {name: …}.
func freeText(key string) bool {
	if strings.HasSuffix(key, ".external.name") {
		return true
	}
	parent, ok := strings.CutSuffix(key, ".*")
	return ok && map[string]bool{
		"services.*.environment": true, "services.*.labels": true, "services.*.extra_hosts": true, "services.*.sysctls": true,
		"services.*.logging.options": true, "services.*.storage_opt": true, "volumes.*.driver_opts": true, "networks.*.labels": true,
		"services.*.ulimits": true, "configs.*.driver_opts": true, "secrets.*.driver_opts": true,
	}[parent]
}

func TestEditDistance(t *testing.T) {
	for _, tt := range []struct {
		a, b string
		want int
	}{{"image", "image", 0}, {"imgae", "image", 1}, {"enviroment", "environment", 1}, {"", "abc", 3}, {"ports", "port", 1}} {
		if got := editDistance(tt.a, tt.b); got != tt.want {
			t.Errorf("editDistance(%q, %q) = %d, want %d", tt.a, tt.b, got, tt.want)
		}
	}
}
