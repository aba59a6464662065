//go:build !crashpoint

package crashpoint

// Hit does nothing in a program that is built without the tag crashpoint.
func Hit(Point) {}
