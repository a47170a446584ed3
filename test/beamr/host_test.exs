defmodule Beamr.HostTest do
  use Beamr.Case, async: true

  import ExUnit.CaptureIO

  alias Beamr.{Host, ImportError, LinkError, StubError}

  doctest Beamr.Host

  defmodule Calculator do
    use Beamr.Host, module: "env"

    @wasm "(i32, i32) -> i32"
    def add(_wasm, a, b), do: a + b

    @wasm "twice, math.twice (i32) -> i32"
    @wasm "twice (f64) -> f64"
    def double(_wasm, n), do: n * 2

    @wasm "scaled (i32) -> i32"
    def scale(_wasm, factor, n), do: n * factor

    @wasm "pair () -> (i32, i64)"
    def pair(_wasm), do: [1, 2]

    @wasm "poke(i32)"
    def poke(wasm, pointer), do: Beamr.IO.write!(wasm, pointer, "poked")
  end

  defmodule Counted do
    use Beamr.Host, module: "env"

    @impl true
    def init(start) do
      counter = :counters.new(1, [])
      :counters.add(counter, 1, start)
      counter
    end

    @wasm "() -> i32"
    def next(_wasm, counter) do
      :counters.add(counter, 1, 1)
      :counters.get(counter, 1)
    end
  end

  defmodule Types do
    @behaviour Beamr.Host

    @impl true
    def shared(module, args), do: {Beamr.Module.name(module), args}

    @impl true
    def parameter(:text), do: [[:i32, :i32], [:i32]]
    def parameter(_type), do: []

    @impl true
    def result(:truth), do: [[:i32], []]
    def result(_type), do: []

    @impl true
    def load(:text, [pointer, length], wasm, _shared) do
      with {:error, _} <- Beamr.IO.read(wasm, pointer, length), do: :error
    end

    def load(:text, [pointer], wasm, _shared), do: Beamr.IO.read_string(wasm, pointer)

    @impl true
    def store(:truth, [], _value, _wasm, _shared), do: nil
    def store(:truth, _form, :error, _wasm, _shared), do: -1
    def store(:truth, _form, :shared, _wasm, shared), do: shared |> inspect() |> byte_size()
    def store(:truth, _form, value, _wasm, _shared), do: if(value, do: 1, else: 0)
  end

  defmodule Texts do
    use Beamr.Host, module: "env", types: Types

    @wasm "(text) -> truth"
    def shouts(_wasm, text), do: String.upcase(text) == text

    @wasm "same (text, text) -> truth"
    def same(_wasm, a, b), do: a == b

    @wasm "tell (text, i32)"
    def tell(_wasm, to, text, n), do: send(to, {text, n})

    @wasm "shared () -> truth"
    def shared(_wasm), do: :shared
  end

  defp guest(import, opts) do
    [name | type] = import

    Beamr.instantiate(
      """
      (module $guest (import "env" "#{name}" (func $i #{type}))
        (memory (export "memory") 1) (data (i32.const 8) "HI\\00ho\\00HI")
        (export "f" (func $i)))
      """,
      opts
    )
  end

  defp call(import, args, opts) do
    {:ok, wasm} = guest(import, opts)
    Beamr.call!(wasm, "f", args)
  end

  defp function(params, results), do: {:function, %{params: params, results: results}}

  describe "a host" do
    test "provides its functions under their names" do
      assert call(["add", "(param i32 i32) (result i32)"], [1, 2], hosts: [Calculator]) == [3]
    end

    test "provides a function under each of several names" do
      for name <- ["twice", "math.twice"] do
        assert call([name, "(param i32) (result i32)"], [4], hosts: [Calculator]) == [8]
      end
    end

    test "has the import's type choose among signatures" do
      assert call(["twice", "(param f64) (result f64)"], [1.25], hosts: [Calculator]) == [2.5]
    end

    test "gives functions that take one more argument the host's own" do
      type = "(param i32) (result i32)"
      assert call(["scaled", type], [4], hosts: [{Calculator, 10}]) == [40]
    end

    test "may answer several results" do
      assert call(["pair", "(result i32 i64)"], [], hosts: [Calculator]) == [1, 2]
    end

    test "gets the instance first" do
      {:ok, wasm} = guest(["poke", "(param i32)"], hosts: [Calculator])
      assert Beamr.call!(wasm, "f", [100]) == []
      assert Beamr.IO.read(wasm, 100, 5) == {:ok, "poked"}
    end

    test "is opened for each instance" do
      for _ <- 1..2 do
        {:ok, wasm} = guest(["next", "(result i32)"], hosts: [{Counted, 5}])
        assert for(_ <- 1..2, do: Beamr.call!(wasm, "f", [])) == [[6], [7]]
      end
    end

    test "is refused with what it has where no signature fits" do
      assert {:error, %LinkError{imports: [problem]} = error} =
               guest(["twice", "(param i64) (result i64)"], hosts: [Calculator])

      assert problem == %{
               module: "env",
               name: "twice",
               problem: :type,
               wanted: function([:i64], [:i64]),
               given: [function([:i32], [:i32]), function([:f64], [:f64])]
             }

      assert Exception.message(error) =~
               "function (i64) -> (i64) is wanted (an Elixir function of arity 2: the instance " <>
                 "comes first), given: function (i32) -> (i32) or function (f64) -> (f64)"
    end

    test "has results of the wrong type refused when linking" do
      assert {:error, %LinkError{imports: [%{problem: :type, given: given}]}} =
               guest(["add", "(param i32 i32) (result i64)"], hosts: [Calculator])

      assert given == function([:i32, :i32], [:i32])
    end

    test "provides no memories" do
      assert {:error, %LinkError{imports: [%{problem: :missing}]}} =
               Beamr.instantiate(~S|(module (import "env" "add" (memory 1)))|,
                 hosts: [Calculator]
               )
    end

    test "comes after the user's own imports" do
      imports = %{"env" => %{"add" => fn _wasm, _a, _b -> 99 end}}
      type = "(param i32 i32) (result i32)"
      assert call(["add", type], [1, 2], hosts: [Calculator], imports: imports) == [99]
    end

    test "comes before those after it" do
      other = %{"env" => %{"add" => fn _wasm, _a, _b -> 99 end}}
      type = "(param i32 i32) (result i32)"
      assert call(["add", type], [1, 2], hosts: [other, Calculator]) == [99]
      assert call(["add", type], [1, 2], hosts: [Calculator, other]) == [3]
    end

    test "leaves to the next what it has in the wrong type only" do
      other = %{"env" => %{"add" => fn _wasm, a -> a + 1 end}}
      assert call(["add", "(param i32) (result i32)"], [1], hosts: [Calculator, other]) == [2]
    end

    defmodule Callback do
      use Beamr.Server

      @impl true
      def init(arg), do: {:ok, arg}

      @impl true
      def handle_import({"env", name}, args, _wasm, state) do
        send(state, {name, args})
        {:reply, -1, state}
      end
    end

    test "serves the guest of a server, before handle_import" do
      module = """
      (module
        (import "env" "next" (func $next (result i32)))
        (import "env" "twice" (func $twice (param i64) (result i64)))
        (export "next" (func $next))
        (export "twice" (func $twice)))
      """

      opts = [module: module, hosts: [{Counted, 0}, Calculator]]
      assert {:error, %LinkError{imports: [%{problem: :type}]}} = Beamr.start_link(opts)

      {:ok, server} = Callback.start_link(opts ++ [arg: self()])
      assert Beamr.call(server, "next", []) == {:ok, [1]}
      assert Beamr.call(server, "twice", [7]) == {:ok, [-1]}
      assert_received {"twice", [7]}
      refute_received {"next", _args}
    end

    test "is opened afresh when a server resets itself" do
      module = """
      (module
        (import "env" "next" (func $next (result i32)))
        (export "next" (func $next))
        (func (export "trap") unreachable))
      """

      server =
        start_supervised!({Beamr.Server, module: module, hosts: [{Counted, 0}], on_trap: :reset})

      for n <- 1..2, do: assert(Beamr.call(server, "next", []) == {:ok, [n]})
      assert {:error, %Beamr.Trap{}} = Beamr.call(server, "trap", [])
      assert Beamr.call(server, "next", []) == {:ok, [1]}
    end

    test "that is none is refused by name" do
      for host <- [String, :no_such_module, {String, 1}, "env", nil, %LinkError{}] do
        assert_raise ArgumentError, ~r/what is no host/, fn ->
          Beamr.instantiate("(module)", hosts: [host])
        end
      end

      assert_raise ArgumentError, ~r/must be a list/, fn ->
        Beamr.instantiate("(module)", hosts: Calculator)
      end
    end
  end

  describe "a host of plain data" do
    test "has its signatures checked" do
      host = %{"env" => %{"f" => {:function, [:i32], [:i32], fn _wasm, n -> n + 1 end}}}
      assert call(["f", "(param i32) (result i32)"], [1], hosts: [host]) == [2]

      assert {:error, %LinkError{imports: [%{given: given}]}} =
               guest(["f", "(param i32) (result f64)"], hosts: [host])

      assert given == function([:i32], [:i32])
    end

    test "may give several" do
      one = {:function, [:i32], [:i32], fn _wasm, n -> n + 1 end}
      two = {:function, [:f64], [:f64], {:list, fn _wasm, [x] -> x / 2 end}}

      for place <- [:imports, :hosts] do
        env = %{"env" => %{"f" => [one, two]}}
        opts = [{place, if(place == :hosts, do: [env], else: env)}]
        assert call(["f", "(param i32) (result i32)"], [1], opts) == [2]
        assert call(["f", "(param f64) (result f64)"], [1.0], opts) == [0.5]
        assert {:error, %LinkError{imports: [%{given: [_, _]}]}} = guest(["f", ""], opts)
      end
    end

    test "has a function of the wrong arity refused" do
      host = %{"env" => %{"f" => {:function, [:i32], [], fn _wasm -> :ok end}}}

      assert {:error, %LinkError{imports: [%{problem: :type}]}} =
               guest(["f", "(param i32)"], hosts: [host])
    end

    test "works from Erlang" do
      host = %{"env" => %{"f" => {:function, [:i32], [:i32], fn _wasm, n -> n + 1 end}}}

      wat =
        ~S|(module (import "env" "f" (func $i (param i32) (result i32))) (export "f" (func $i)))|

      {:ok, wasm} = :beamr.instantiate(wat, %{hosts: [host]})
      assert :beamr.call(wasm, "f", [1]) == {:ok, [2]}

      {:ok, module} = :beamr.compile(wat)
      {:ok, wasm} = :beamr.instantiate(module, hosts: [:beamr.stub(module, :zero)])
      assert :beamr.call(wasm, "f", [1]) == {:ok, [0]}
    end
  end

  describe "types of one's own" do
    test "are loaded in each of their forms, all in the same" do
      pair = ["same", "(param i32 i32 i32 i32) (result i32)"]
      assert call(pair, [8, 2, 14, 2], hosts: [Texts]) == [1]
      assert call(pair, [8, 2, 11, 2], hosts: [Texts]) == [0]
      pointers = ["same", "(param i32 i32) (result i32)"]
      assert call(pointers, [8, 14], hosts: [Texts]) == [1]

      assert {:error, %LinkError{}} =
               guest(["same", "(param i32 i32 i32) (result i32)"], hosts: [Texts])
    end

    test "are stored in each of their forms" do
      assert call(["shouts", "(param i32) (result i32)"], [8], hosts: [Texts]) == [1]
      assert call(["shouts", "(param i32)"], [8], hosts: [Texts]) == []
    end

    test "stand beside WebAssembly's, and beside a state" do
      assert call(["tell", "(param i32 i32 i32)"], [8, 2, 7], hosts: [{Texts, self()}]) == []
      assert_received {"HI", 7}
    end

    test "have the function not called at an error" do
      type = "(param i32 i32) (result i32)"
      assert call(["shouts", type], [65_530, 100], hosts: [Texts]) == [-1]

      assert call(["tell", "(param i32 i32 i32)"], [65_530, 100, 7], hosts: [{Texts, self()}]) ==
               []

      refute_received {_text, 7}
    end

    test "have what is shared made once, of the module and all arguments" do
      size = byte_size(inspect({"guest", [nil, :x]}))
      assert call(["shared", "(result i32)"], [], hosts: [Texts, {Texts, :x}]) == [size]
    end
  end

  describe "a declaration" do
    defp declare(body, opts \\ "module: \"env\"") do
      Code.eval_string("""
      defmodule Beamr.HostTest.Declared#{System.unique_integer([:positive])} do
        use Beamr.Host, #{opts}
        #{body}
      end
      """)
    end

    test "needs a function that takes its arguments" do
      assert_raise CompileError, ~r/must take the instance/, fn ->
        declare(~S|@wasm "(i32, i32)"; def f(_wasm, _a), do: nil|)
      end
    end

    test "must be one" do
      for bad <- ["i32", "(i32", ":f", "f (i32) -> ", "(i32) i32"] do
        assert_raise CompileError, ~r/must be a string like/, fn ->
          declare("@wasm #{inspect(bad)}; def f(_wasm, _a), do: nil")
        end
      end
    end

    test "has types of WebAssembly" do
      assert_raise CompileError, ~r/no type of WebAssembly: int/, fn ->
        declare(~S|@wasm "(int)"; def f(_wasm, _a), do: nil|)
      end
    end

    test "has one result of a type of one's own" do
      assert_raise CompileError, ~r/must be the only one/, fn ->
        declare(
          ~S|@wasm "() -> (i32, truth)"; def f(_wasm), do: nil|,
          ~S|module: "env", types: Beamr.HostTest.Types|
        )
      end
    end

    test "is for public functions" do
      assert_raise CompileError, ~r/not for defp f/, fn ->
        declare(~S|@wasm "()"; defp f(_wasm), do: nil; def g, do: f(1)|)
      end
    end

    test "needs the module's name" do
      assert_raise CompileError, ~r/needs module:/, fn -> declare("", "[]") end
    end
  end

  describe "a stub" do
    @imports """
    (module
      (import "env" "a" (func $a (param i32) (result i32)))
      (import "env" "b" (func $b (result i64 f32 f64 v128 funcref externref)))
      (import "env" "b" (func $b2))
      (import "sys" "c" (func $c (param i32)))
      (func (export "a") (result i32) (call $a (i32.const 7)))
      (func (export "b") (result i64 f32 f64 v128 funcref externref) (call $b))
      (func (export "b2") (call $b2))
      (func (export "c") (call $c (i32.const 7))))
    """

    test "answers zeros of the right types" do
      module = Beamr.compile!(@imports)

      for opts <- [[stubs: :zero], [hosts: [Host.stub(module, :zero)]]] do
        {:ok, wasm} = Beamr.instantiate(module, opts)
        assert Beamr.call(wasm, "a", []) == {:ok, [0]}
        assert Beamr.call(wasm, "b", []) == {:ok, [0, 0.0, 0.0, <<0::128>>, nil, nil]}
        assert Beamr.call(wasm, "b2", []) == {:ok, []}
        assert Beamr.call(wasm, "c", []) == {:ok, []}
      end
    end

    test "ends the call with the import's name" do
      module = Beamr.compile!(@imports)

      for opts <- [[stubs: :trap], [hosts: [Host.stub(module, :trap)]]] do
        {:ok, wasm} = Beamr.instantiate(module, opts)

        assert {:error, %ImportError{module: "sys", name: "c", reason: reason}} =
                 Beamr.call(wasm, "c", [])

        assert reason == %StubError{module: "sys", name: "c"}
        assert Exception.message(reason) == ~S|"sys" "c" is only a stub|
      end
    end

    test "stands for what is chosen" do
      module = Beamr.compile!(@imports)
      stub = Host.stub(module, :zero, ["sys", {"env", "a"}])
      assert {:error, %LinkError{imports: problems}} = Beamr.instantiate(module, hosts: [stub])
      assert for(problem <- problems, do: problem.name) == ["b", "b"]
    end

    test "comes after everything else" do
      imports = %{"env" => %{"a" => fn _wasm, n -> n end}}
      wasm = Beamr.instantiate!(@imports, imports: imports, stubs: :zero)
      assert Beamr.call(wasm, "a", []) == {:ok, [7]}
    end

    test "stands for functions only, and not for those of the wrong type" do
      assert {:error, %LinkError{imports: [%{problem: :missing}]}} =
               Beamr.instantiate(~S|(module (import "env" "m" (memory 1)))|, stubs: :zero)

      assert {:error, %LinkError{imports: [%{problem: :type}]}} =
               Beamr.instantiate(@imports, imports: %{"env" => %{"a" => :x}}, stubs: :zero)
    end

    test "does one of two things" do
      assert_raise ArgumentError, ~r/must be :zero or :trap/, fn ->
        Beamr.instantiate("(module)", stubs: :one)
      end

      assert_raise FunctionClauseError, fn ->
        Host.stub(Beamr.compile!("(module)"), untyped(:one))
      end
    end

    test "serves a server's guest" do
      {:ok, server} = Beamr.start_link(module: @imports, stubs: :zero)
      assert Beamr.call(server, "a", []) == {:ok, [0]}
    end
  end

  describe "a host of Beamr's that was not given" do
    test "is named" do
      assert {:error, %LinkError{imports: [problem]} = error} =
               guest(["file_read", "(param i32 i32) (result i32)"], [])

      assert problem.host == Beamr.Host.Clean.Files

      assert Exception.message(error) =~
               ~S|"env" "file_read" is missing: function (i32, i32) -> (i32); it belongs to | <>
                 "Beamr.Host.Clean.Files, which is not among the hosts"
    end

    test "is not named for something else under the same name" do
      assert {:error, %LinkError{imports: [problem]}} = guest(["file_read", "(param f64)"], [])
      refute Map.has_key?(problem, :host)
    end
  end

  test "what the module's documentation shows works" do
    {:docs_v1, _, _, _, %{"en" => doc}, _, _} = Code.fetch_docs(Beamr.Host)
    [_all, source] = Regex.run(~r/    (defmodule Calculator.*?\n    end)\n/s, doc)
    [{calculator, _code}] = Code.compile_string(source)
    wat = ~S|(module (import "env" "log" (func $log (param i32))) (export "f" (func $log)))|
    {:ok, wasm} = Beamr.instantiate(wat, hosts: [{calculator, "n = "}])
    assert capture_io(fn -> Beamr.call!(wasm, "f", [7]) end) == "n = 7\n"
  end
end
