package route

// WriteSlots puts the upstreams of a route and a challenge into a folder, as a change does, for the tests outside.
func WriteSlots(dir, name string, upstreams ...string) error {
	s := slots{dir: dir}
	if err := s.challenge("value"); err != nil {
		return err
	}
	if err := s.writePage(name, "<p>"+upstreams[0]); err != nil {
		return err
	}
	_, err := s.write(name, upstreams, 0, true)
	return err
}
