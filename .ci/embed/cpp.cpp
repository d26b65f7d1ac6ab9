// From C++: fetch the arguments. fetcher.c is compiled as C, and a function object travels through `arg`; it has one
// place to die, since on_done runs exactly once.
//
//     cc -c fetcher.c && c++ -std=c++11 -o app cpp.cpp fetcher.o -lcurl
#include <csignal>
#include <cstdlib>
#include <functional>
#include <iostream>
#include <memory>
#include <stdexcept>
#include <string>
#include "fetcher.h"

class Fetcher {
  public:
    using Done = std::function<void(const fetcher_result &)>;

    Fetcher() : f(fetcher_new(), fetcher_free) {
        if (!f)
            throw std::runtime_error("fetcher_new");
    }

    fetcher_id get(const std::string &url, Done done) {
        std::unique_ptr<Done> kept(new Done(std::move(done)));
        fetcher_request r = fetcher_request();
        r.url = url.c_str();
        r.on_done = ended;
        r.arg = kept.get();
        fetcher_id id = fetcher_start(f.get(), &r);
        if (id)
            kept.release(); // it is on_done's now
        return id;
    }

    void run() {
        fetcher_run(f.get());
    }

  private:
    // No exception may fly through C: so none leaves here.
    static void ended(fetcher *, const fetcher_result *r, void *arg) noexcept {
        Done *done = static_cast<Done *>(arg);
        (*done)(*r);
        if (r->last)
            delete done;
    }

    std::unique_ptr<fetcher, void (*)(fetcher *)> f;
};

int main(int argc, char **argv) {
    std::size_t sum = 0;
    Fetcher fetcher;

    std::signal(SIGPIPE, SIG_IGN);
    for (int i = 1; i < argc; i++)
        fetcher.get(argv[i], [&sum](const fetcher_result &r) {
            std::cout << r.url << ": " << r.message << ", " << r.size << " bytes\n";
            sum += r.size;
        });
    fetcher.run();
    std::cout << "together " << sum << " bytes\n";
    return EXIT_SUCCESS;
}
