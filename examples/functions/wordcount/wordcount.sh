#!/bin/sh
# Counts lines, words and bytes of the request, or with ?top=N lists its N most
# frequent words. A process per request: the body is standard input, and what
# goes to standard error is sealed into the owner's log.
set -eu

case "${Http_Query:-}" in
top=*)
	n=${Http_Query#top=}
	case "$n" in
	'' | *[!0-9]* | ????*)
		echo "top=$n is not a number of at most three digits" >&2
		exit 2
		;;
	esac
	tr -cs '[:alnum:]' '\n' | tr '[:upper:]' '[:lower:]' | sed '/^$/d' |
		sort | uniq -c | sort -k1,1nr -k2,2 | head -n "$n" | while read -r count word; do
		echo "$count $word"
	done
	;;
*)
	# Word splitting drops the columns' padding.
	set -- $(wc)
	printf '{"lines":%s,"words":%s,"bytes":%s}\n' "$1" "$2" "$3"
	;;
esac
