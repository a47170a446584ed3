defmodule Beamr.Host.Clean do
  @moduledoc ~S"""
  The host of [Clean Language](https://www.cleanlanguage.dev) programs: what modules compiled from
  it import, in groups that are granted one by one.

      Beamr.Host.Clean.run("program.wasm", grant: [:console, :strings, files: [root: "data"]])

  | group | module | argument |
  |---|---|---|
  | `:console` | `Beamr.Host.Clean.Console` | `output:`, `errors:`, `input:` devices |
  | `:math` | `Beamr.Host.Clean.Math` | |
  | `:strings` | `Beamr.Host.Clean.Strings` | |
  | `:memory_runtime` | `Beamr.Host.Clean.MemoryRuntime` | |
  | `:files` | `Beamr.Host.Clean.Files` | `root:` a directory |
  | `:http` | `Beamr.Host.Clean.HTTP` | `allow:` hosts |
  | `:database` | `Beamr.Host.Clean.Database` | `{adapter, connection}` |
  | `:crypto` | `Beamr.Host.Clean.Crypto` | |
  | `:request` | `Beamr.Host.Clean.Request` | the request, or a function that answers it |
  | `:auth` | `Beamr.Host.Clean.Auth` | the session, or a function that answers it |
  | `:http_server` | `Beamr.Host.Clean.HTTPServer` | a function that is told of routes |

  Each group is a `Beamr.Host` for itself. A module that imports a function of a group that was not
  granted is refused with a `Beamr.LinkError` that names the functions and their hosts.

      iex> hello = ~S|(module (import "env" "printl" (func $printl (param i32 i32)))
      ...>   (memory (export "memory") 1) (data (i32.const 8) "hello")
      ...>   (func (export "start") (call $printl (i32.const 8) (i32.const 5))))|
      iex> ExUnit.CaptureIO.capture_io(fn -> {:ok, []} = Beamr.Host.Clean.run(hello) end)
      "hello\n"
      iex> {:error, error} = Beamr.Host.Clean.run(hello, grant: [:math])
      iex> for problem <- error.imports, do: {problem.name, problem.host}
      [{"printl", Beamr.Host.Clean.Console}]

  ## Strings and memory

  A string argument is a pointer and a length in bytes, or in later modules a pointer to a 4-byte
  length with the bytes behind it; results are always the latter, aligned to 4. Which of the two a
  function takes is told by its type in the module. Pointer 0 is the empty string. Bad UTF-8, also
  in files and responses, becomes U+FFFD. A string that lies outside the guest's memory makes the
  function fail: then strings are "", booleans and integers 0, and counts -1.

  What the host allocates comes, for the life of the instance, from the first of these that there
  is; `allocator:`, to `run/2` or to any of the groups, chooses another:

    * `:malloc` - the guest's exported `malloc`;
    * `:heap_ptr` - its exported mutable global `__heap_ptr`: read before, and written after,
      rounded up to 8;
    * `:zero_word` - the word at address 0, if it is not zero and lies in the memory, used in the
      same way;
    * `{:base, 65_536}` - the memory from there on;
    * a function of the instance, a size and an alignment, that answers the address or 0. Only
      chosen.

  Memory grows as it must. Where it cannot, strings are empty and `mem_alloc` is 0. All but the
  guest's `malloc` only ever move on.
  """

  import Beamr.Guest, only: [is_guest: 1]

  alias Beamr.CallError
  alias Beamr.Host.Clean

  @groups [
    console: Clean.Console,
    math: Clean.Math,
    strings: Clean.Strings,
    memory_runtime: Clean.MemoryRuntime,
    files: Clean.Files,
    http: Clean.HTTP,
    database: Clean.Database,
    crypto: Clean.Crypto,
    request: Clean.Request,
    auth: Clean.Auth,
    http_server: Clean.HTTPServer
  ]

  # What does nothing to anybody.
  @harmless [:console, :math, :strings, :memory_runtime]

  @entries ["_start", "main", "start"]

  @typedoc "The name of a group, with its argument if it has one."
  @type grant :: atom() | {atom(), arg :: term()}

  @doc false
  @spec groups() :: [module()]
  def groups, do: Keyword.values(@groups)

  @doc """
  The hosts of some groups, for `hosts:` of `Beamr.instantiate/2` and `Beamr.Server`.

      iex> Beamr.Host.Clean.hosts([:math, files: [root: "/srv/data"]])
      [{Beamr.Host.Clean.Math, nil}, {Beamr.Host.Clean.Files, [root: "/srv/data"]}]
  """
  @spec hosts([grant()]) :: [{module(), term()}]
  def hosts(grant \\ @harmless) when is_list(grant) do
    for group <- grant do
      case group do
        {name, arg} when is_atom(name) -> {@groups[name] || unknown!(name), arg}
        name when is_atom(name) -> {@groups[name] || unknown!(name), nil}
        other -> unknown!(other)
      end
    end
  end

  defp unknown!(name) do
    raise ArgumentError,
          "Clean has no group #{inspect(name)}; there are #{inspect(Keyword.keys(@groups))}"
  end

  @doc """
  Runs a program to its end: calls its `_start`, else its `main`, else its `start`, and answers
  what that answered.

  The program is a `Beamr.Module`, WebAssembly bytes or text, or the path of a file. Options:

    * `:grant` - the groups that it may use, with their arguments; `#{inspect(@harmless)}` unless
      given;
    * `:allocator` - see above;
    * `:timeout` - milliseconds that the call may take; `:infinity` unless given, since a program
      may wait for input;
    * those of `Beamr.instantiate/2`. What is in `:imports` and `:hosts` comes before Clean's.

  Fails with the errors of `Beamr.instantiate/2` and `Beamr.call/4`, and with a
  `Beamr.CallError` for a program that exports none of the three.

      iex> Beamr.Host.Clean.run(~s|(module (func (export "main") (result i32) (i32.const 7)))|)
      {:ok, [7]}
  """
  @spec run(Beamr.Module.t() | binary(), keyword()) ::
          {:ok, [Beamr.value()]} | {:error, Exception.t()}
  def run(program, opts \\ [])
      when (is_binary(program) or is_struct(program, Beamr.Module)) and is_list(opts) do
    with {:ok, module} <- Beamr.Server.load(program, opts),
         {:ok, wasm} <- instantiate(module, opts) do
      try do
        call_entry(wasm, module, Keyword.get(opts, :timeout, :infinity))
      after
        Beamr.close(wasm)
      end
    end
  end

  @doc false
  @spec instantiate(Beamr.Module.t(), keyword()) ::
          {:ok, Beamr.Instance.t()} | {:error, Exception.t()}
  def instantiate(module, opts) do
    {own, opts} = Keyword.split(opts, [:grant, :allocator])
    chosen = {Clean.Allocator.Choice, Keyword.take(own, [:allocator])}
    hosts = [chosen | hosts(Keyword.get(own, :grant, @harmless))]
    Beamr.instantiate(module, Keyword.update(opts, :hosts, hosts, &(&1 ++ hosts)))
  end

  @doc "As `run/2`, but raises the error."
  @spec run!(Beamr.Module.t() | binary(), keyword()) :: [Beamr.value()]
  def run!(program, opts \\ []), do: program |> run(opts) |> Beamr.Error.unwrap!()

  @doc false
  # Calls the program's entry point.
  @spec call_entry(Beamr.Instance.t(), Beamr.Module.t(), timeout()) ::
          {:ok, [Beamr.value()]} | {:error, Exception.t()}
  def call_entry(wasm, module, timeout) do
    functions = for {name, {:function, _type}} <- Beamr.Module.exports(module), do: name

    case Enum.find(@entries, &(&1 in functions)) do
      nil -> {:error, %CallError{reason: :unknown_function, function: hd(@entries)}}
      entry -> Beamr.call(wasm, entry, [], timeout: timeout)
    end
  end

  @doc """
  The string at a pointer that a function of the guest answered. Fails with `Beamr.MemoryError`
  where it lies outside the memory.

      iex> wasm = Beamr.instantiate!(~S|(module (memory (export "memory") 1) (data (i32.const 8) "\\05\\00\\00\\00hello"))|)
      iex> Beamr.Host.Clean.read_string(wasm, 8)
      {:ok, "hello"}
      iex> Beamr.Host.Clean.read_string(wasm, 0)
      {:ok, ""}
  """
  @spec read_string(Beamr.guest(), non_neg_integer()) ::
          {:ok, String.t()} | {:error, Beamr.MemoryError.t()}
  def read_string(guest, pointer)
      when is_guest(guest) and is_integer(pointer) and pointer >= 0 do
    Clean.Types.read(guest, pointer)
  end

  @doc "As `read_string/2`, but raises the error."
  @spec read_string!(Beamr.guest(), non_neg_integer()) :: String.t()
  def read_string!(guest, pointer), do: guest |> read_string(pointer) |> Beamr.Error.unwrap!()
end
