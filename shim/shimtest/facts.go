package shimtest

// Facts are what a program finds out about the container it runs in.
type Facts struct {
	PID, UID, GID int
	Files         map[string]string // what reading some files gives, or the error
	Writable      map[string]bool
	Exists        map[string]bool
	Hostname      string
	Descriptors   int
	Denied        string // what a call that the filter denies gives
	NewCall       string // and one that it does not know
}
