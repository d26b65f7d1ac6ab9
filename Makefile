# SPDX-License-Identifier: 0BSD
# fetcher: make, make demo, make test, make bench, make dots, make score, make lab, make fuzz, make man, make install, make dist. Plain POSIX make.
# make X11=0 leaves the window out, which is built where pkg-config finds x11 and xft.

.POSIX:

CC = cc
CFLAGS = -O2
WARN = -std=c99 -Wall -Wextra -Wpedantic -Wshadow -Wconversion -Wstrict-prototypes
LIBS = -lcurl
X11 = 1
WINDOW = `test "$(X11)" != 0 && pkg-config --exists "x11 >= 1.7" xft 2>/dev/null && \
	echo -DFETCHER_X11 $$(pkg-config --cflags --libs x11 xft fontconfig)`
PREFIX = /usr/local
DESTDIR =

fetcher: fetcher.c fetcher.h .build/found
	@$(CC) $(CPPFLAGS) $(CFLAGS) -E -include curl/curl.h -x c /dev/null >/dev/null 2>&1 || { \
	echo "fetcher needs libcurl's headers: Debian, Ubuntu: libcurl4-openssl-dev; Alpine: curl-dev;" \
	"Fedora: libcurl-devel; FreeBSD: ftp/curl; macOS: they come with Xcode's tools." >&2; exit 1; }
	$(CC) $(CPPFLAGS) $(CFLAGS) $(WARN) -DFETCHER_MAIN $(LDFLAGS) -o $@ fetcher.c $(LIBS) $(WINDOW)

# What was found for the window: it is looked for each time, and written down when it is another.
.build/found: FORCE
	@mkdir -p .build; echo $(WINDOW) >.build/finds; \
	cmp -s .build/finds .build/found || cp .build/finds .build/found

FORCE:

fetcher.o: fetcher.c fetcher.h
	$(CC) $(CPPFLAGS) $(CFLAGS) $(WARN) -c -o $@ fetcher.c

test_fetcher: test_fetcher.c fetcher.c fetcher.h .build/found
	$(CC) $(CPPFLAGS) $(CFLAGS) -g $(WARN) $(LDFLAGS) -o $@ test_fetcher.c $(LIBS) -ldl -lpthread \
	$(WINDOW)

test: fetcher fetcher.o test_fetcher
	./test_fetcher

# The main job, on a server that the tests bring: a list of 200 files, into demo/.
demo: fetcher test_fetcher
	./test_fetcher demo

# CURL=/path/of/another/curl compares with that.
bench: fetcher test_fetcher .build/bench
	bash .ci/bench

# The score of the loop, with the usual slice and with one that is too long: pictures for README.md.
score: .build/bench
	sh .ci/scores

# What downloaders make of a server that lies: the table in README.md.
lab: fetcher test_fetcher
	@.ci/lab

.build/bench: .ci/bench.c test_fetcher.c fetcher.c fetcher.h
	@mkdir -p .build
	$(CC) $(CPPFLAGS) $(CFLAGS) -g $(WARN) -Wno-unused-function $(LDFLAGS) -o $@ .ci/bench.c $(LIBS) \
	-ldl -lpthread $(WINDOW)

# The tables in README.md once more as pictures, as `make bench` does.
dots:
	sh .ci/dots

# Each target of the fuzzer for SECONDS (clang with libFuzzer; FUZZ=http for one alone). What it learns
# goes to .build/corpus, and an input that breaks something to .build, where FUZZ_TARGET=http .build/fuzz
# FILE shows it again.
SECONDS = 60
FUZZ = names urls head meta options lines keys http

.build/fuzz: .ci/fuzz.c test_fetcher.c fetcher.c fetcher.h
	@mkdir -p .build
	clang -std=c99 -w -g -O1 -fsanitize=fuzzer,address,undefined -fno-sanitize-recover=undefined \
	-o $@ .ci/fuzz.c $(LIBS) -ldl -lpthread

fuzz: .build/fuzz
	@for target in $(FUZZ); do mkdir -p .build/corpus/$$target; \
	FUZZ_TARGET=$$target .build/fuzz -max_total_time=$(SECONDS) -max_len=3000 -timeout=10 \
	-artifact_prefix=.build/$$target- .build/corpus/$$target .ci/corpus/$$target >.build/log 2>&1 || \
	{ sed '/^#/d' .build/log | tail -n 40; exit 1; }; \
	echo "$$target: $$(tail -n 1 .build/log)"; done

# The manual pages are made of --help, README.md and fetcher.h; the completions of the table of options.
.build/fetcher.1: fetcher README.md .ci/man
	@mkdir -p .build
	sh .ci/man 1 >$@

.build/fetcher.3: fetcher.h .ci/man
	@mkdir -p .build
	sh .ci/man 3 >$@

man: .build/fetcher.1 .build/fetcher.3

SHARE = $(DESTDIR)$(PREFIX)/share
ICONS = $(SHARE)/icons/hicolor/scalable/apps

install: fetcher man
	mkdir -p $(DESTDIR)$(PREFIX)/bin $(SHARE)/man/man1 $(SHARE)/man/man3 $(SHARE)/doc/fetcher \
	$(SHARE)/bash-completion/completions $(SHARE)/zsh/site-functions $(SHARE)/fish/vendor_completions.d
	cp fetcher $(DESTDIR)$(PREFIX)/bin/fetcher
	chmod 755 $(DESTDIR)$(PREFIX)/bin/fetcher
	cp .build/fetcher.1 $(SHARE)/man/man1/fetcher.1
	cp .build/fetcher.3 $(SHARE)/man/man3/fetcher.3
	cp README.md $(SHARE)/doc/fetcher/README.md
	./fetcher --completion bash >$(SHARE)/bash-completion/completions/fetcher
	./fetcher --completion zsh >$(SHARE)/zsh/site-functions/_fetcher
	./fetcher --completion fish >$(SHARE)/fish/vendor_completions.d/fetcher.fish
	if grep -q X11 .build/found; then mkdir -p $(SHARE)/applications $(ICONS) && \
	cp .ci/fetcher.desktop $(SHARE)/applications/fetcher.desktop && \
	cp .ci/fetcher.svg $(ICONS)/fetcher.svg; fi

uninstall:
	rm -f $(DESTDIR)$(PREFIX)/bin/fetcher $(SHARE)/man/man1/fetcher.1 $(SHARE)/man/man3/fetcher.3 \
	$(SHARE)/doc/fetcher/README.md $(SHARE)/bash-completion/completions/fetcher \
	$(SHARE)/zsh/site-functions/_fetcher $(SHARE)/fish/vendor_completions.d/fetcher.fish \
	$(SHARE)/applications/fetcher.desktop $(ICONS)/fetcher.svg

# The window in all its states, under Xvfb, into .build/pictures: to be looked at.
pictures: fetcher test_fetcher
	bash .ci/window-pictures
	python3 .ci/demo-picture

# A tarball that builds and tests itself.
dist:
	version=`sed -n 's/^.define FETCHER_VERSION "\(.*\)"/\1/p' fetcher.h`; dir=fetcher-$$version; \
	rm -rf $$dir $$dir.tar.gz; mkdir $$dir && \
	cp -R fetcher.c fetcher.h test_fetcher.c Makefile README.md .ci .github .clang-format .clang-tidy .gitignore $$dir && \
	tar cf - $$dir | gzip -9 >$$dir.tar.gz; rm -rf $$dir; ls $$dir.tar.gz

clean:
	rm -rf fetcher fetcher.o test_fetcher .build demo fetcher-[0-9]*

.PHONY: test demo bench pictures dots score lab fuzz man install uninstall dist clean
