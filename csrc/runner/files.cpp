#include "files.h"

#include <fcntl.h>
#include <signal.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cctype>
#include <cerrno>
#include <cstring>
#include <ctime>
#include <filesystem>

#include "failure.h"

namespace blsgan::runner {
namespace {

constexpr int64_t kMaxFileBytes = int64_t{1} << 30;
constexpr char kTemporary[] = ".tmp";
constexpr std::time_t kLeftoverSeconds = 600;

class Descriptor {
 public:
  explicit Descriptor(int number) : number_(number) {}
  ~Descriptor() {
    if (number_ >= 0) ::close(number_);
  }
  Descriptor(const Descriptor&) = delete;
  Descriptor& operator=(const Descriptor&) = delete;
  int get() const { return number_; }

 private:
  int number_;
};

Failure unwritable(const std::string& path, int error) {
  const char* reason = std::strerror(error);
  switch (error) {
    case ENOSPC:
      reason = "the disk is full; free some space or choose another folder";
      break;
    case EDQUOT:
      reason = "the disk quota is used up; free some space or choose another folder";
      break;
    case EACCES:
    case EPERM:
      reason = "the folder is not writable; choose another one";
      break;
    case EROFS:
      reason = "the file system is read-only; choose another folder";
      break;
    case ENOTDIR:
    case EEXIST:
      reason = "part of the path is a file, not a folder; choose another one";
      break;
    case EISDIR:
      reason = "a folder of that name is in the way; move it or choose another name";
      break;
    case ENAMETOOLONG:
      reason = "the name is too long for the file system; choose a shorter one";
      break;
    default:
      break;
  }
  return data_failure(path + " cannot be written: " + reason + ".");
}

Failure unreadable(const std::string& path, int error, const char* what) {
  return data_failure(path + " cannot be read (" + std::strerror(error) + "); check the " + what +
                      ".");
}

void write_all(int descriptor, const Output& output, const std::string& target) {
  size_t done = 0;
  while (done < output.data.size()) {
    const ssize_t count = ::write(descriptor, output.data.data() + done, output.data.size() - done);
    if (count < 0 && errno == EINTR) continue;
    if (count < 0) throw unwritable(target, errno);
    done += static_cast<size_t>(count);
  }
  if (::fsync(descriptor) != 0) throw unwritable(target, errno);
}

// Signals that would end the process wait until what was begun is complete or undone.
class SignalsHeld {
 public:
  SignalsHeld() {
    sigset_t signals;
    sigemptyset(&signals);
    for (int number : {SIGINT, SIGTERM, SIGHUP}) sigaddset(&signals, number);
    pthread_sigmask(SIG_BLOCK, &signals, &before_);
  }
  ~SignalsHeld() { pthread_sigmask(SIG_SETMASK, &before_, nullptr); }
  SignalsHeld(const SignalsHeld&) = delete;
  SignalsHeld& operator=(const SignalsHeld&) = delete;

 private:
  sigset_t before_;
};

// Files and folders that exist only until keep(): removed otherwise, last first.
class Unfinished {
 public:
  Unfinished() = default;
  ~Unfinished() {
    for (auto path = paths_.rbegin(); path != paths_.rend(); ++path) std::remove(path->c_str());
  }
  Unfinished(const Unfinished&) = delete;
  Unfinished& operator=(const Unfinished&) = delete;
  void add(const std::string& path) { paths_.push_back(path); }
  void keep() { paths_.clear(); }

 private:
  std::vector<std::string> paths_;
};

void make_folders(const std::filesystem::path& folder, Unfinished& made) {
  std::vector<std::filesystem::path> missing;
  std::error_code ignored;
  for (std::filesystem::path path = folder; !path.empty() && !std::filesystem::exists(path, ignored);
       path = path.parent_path()) {
    missing.push_back(path);
  }
  for (auto path = missing.rbegin(); path != missing.rend(); ++path) {
    if (::mkdir(path->c_str(), 0777) == 0) {
      made.add(path->string());
    } else if (errno != EEXIST) {
      throw unwritable(folder.string(), errno);
    }
  }
}

// The temporary files of a process that was killed, this one's or blsgan's (blsgan/io/atomic.py): those
// that nobody holds and nobody has written for a while.
void remove_leftovers(const std::string& folder) {
  std::error_code error;
  std::filesystem::directory_iterator entries(folder, error);
  for (; !error && entries != std::filesystem::directory_iterator(); entries.increment(error)) {
    const std::string path = entries->path().string(), name = entries->path().filename().string();
    if (name.rfind(".blsgan-", 0) != 0 || name.find(kTemporary) == std::string::npos) continue;
    const Descriptor file(::open(path.c_str(), O_RDONLY | O_NOFOLLOW | O_NONBLOCK | O_CLOEXEC));
    struct stat status {};
    if (file.get() < 0 || ::fstat(file.get(), &status) != 0 || !S_ISREG(status.st_mode)) continue;
    if (std::time(nullptr) - status.st_mtime < kLeftoverSeconds) continue;
    if (::flock(file.get(), LOCK_EX | LOCK_NB) == 0) std::remove(path.c_str());
  }
}

}  // namespace

File read_file(const std::string& path, const char* what) {
  struct stat status {};
  if (::stat(path.c_str(), &status) != 0) {
    if (errno != ENOENT) throw unreadable(path, errno, what);
    throw data_failure(path + " does not exist; check the path of the " + what + ".");
  }
  if (S_ISDIR(status.st_mode)) {
    throw data_failure(path + " is a folder where one " + what + " is expected; name the file.");
  }
  if (!S_ISREG(status.st_mode)) {
    throw data_failure(path + " is not a regular file; name the " + what + " itself.");
  }
  if (status.st_size > kMaxFileBytes) {
    throw data_failure(text("%s has %.1f GiB, more than the 1 GiB that is read; crop it to the joint "
                            "first.",
                            path.c_str(), static_cast<double>(status.st_size) / (1 << 30)));
  }
  const Descriptor file(::open(path.c_str(), O_RDONLY | O_CLOEXEC));
  if (file.get() < 0) throw unreadable(path, errno, what);
  File result{path, Bytes(static_cast<size_t>(status.st_size))};
  size_t done = 0;
  while (done < result.data.size()) {
    const ssize_t count = ::read(file.get(), result.data.data() + done, result.data.size() - done);
    if (count < 0 && errno == EINTR) continue;
    if (count < 0) throw unreadable(path, errno, what);
    if (count == 0) break;
    done += static_cast<size_t>(count);
  }
  result.data.resize(done);
  if (result.data.empty()) {
    throw data_failure(path + " is empty (0 bytes); give a complete " + what + ".");
  }
  return result;
}

void write_together(const std::string& folder, const std::vector<Output>& outputs) {
  const SignalsHeld held;
  Unfinished unfinished;
  make_folders(folder, unfinished);
  remove_leftovers(folder);
  std::vector<std::string> temporaries;
  for (const Output& output : outputs) {
    struct stat status {};
    if (::stat(output.path.c_str(), &status) == 0 && S_ISDIR(status.st_mode)) {
      throw unwritable(output.path, EISDIR);
    }
    std::string temporary = folder + "/.blsgan-XXXXXX" + kTemporary;
    const Descriptor file(
        ::mkostemps(temporary.data(), static_cast<int>(std::strlen(kTemporary)), O_CLOEXEC));
    if (file.get() < 0) throw unwritable(output.path, errno);
    unfinished.add(temporary);
    temporaries.push_back(temporary);
    // mkstemp makes private files; results get the permissions that any new file has here.
    const mode_t mask = ::umask(0);
    ::umask(mask);
    if (::fchmod(file.get(), 0666 & ~mask) != 0) throw unwritable(output.path, errno);
    write_all(file.get(), output, output.path);
  }
  Unfinished appeared;
  for (size_t i = 0; i < outputs.size(); ++i) {
    struct stat status {};
    const bool is_new = ::lstat(outputs[i].path.c_str(), &status) != 0;
    if (std::rename(temporaries[i].c_str(), outputs[i].path.c_str()) != 0) {
      throw unwritable(outputs[i].path, errno);
    }
    if (is_new) appeared.add(outputs[i].path);
  }
  appeared.keep();
  unfinished.keep();
  // Makes the renames durable. Not every file system offers it; the files are complete anyway.
  const Descriptor directory(::open(folder.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC));
  if (directory.get() >= 0) (void)::fsync(directory.get());
}

bool same_file(const std::string& a, const std::string& b) {
  std::error_code error;
  return std::filesystem::equivalent(a, b, error) && !error;
}

std::string stem(const std::string& path) { return std::filesystem::path(path).stem().string(); }

std::string suffix(const std::string& path) {
  std::string end = std::filesystem::path(path).extension().string();
  std::transform(end.begin(), end.end(), end.begin(),
                 [](unsigned char c) { return static_cast<char>(std::tolower(c)); });
  return end;
}

}  // namespace blsgan::runner
