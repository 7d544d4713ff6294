package sealed

// Field is one HTTP header field. Name is in lower case; a repeated name is a
// repeated Field, in order.
type Field struct {
	Name, Value string
}

// RequestHead is what a function sees of an invocation besides its body.
type RequestHead struct {
	Method string  // an upper-case token, 1..32 bytes
	Path   string  // "" or an absolute path, escaped as it was written; without the function's own prefix
	Query  string  // without '?'
	Header []Field // at most 256
}

// ReplyHead is a function's answer besides its body.
type ReplyHead struct {
	Status int // 200..999
	Header []Field
}
