defmodule Beamr.ErlangTest do
  use Beamr.Case, async: true

  @moduletag capture_log: true

  # An application's supervisor, as Erlang has it. The README shows it.
  @guests_sup ~S"""
  -module(guests_sup).
  -behaviour(supervisor).
  -export([start_link/1, add/2]).
  -export([init/1]).

  start_link(Source) ->
      supervisor:start_link({local, ?MODULE}, ?MODULE, Source).

  init(Source) ->
      Calculator = beamr:child_spec(#{id => calculator,
                                      name => calculator,
                                      module => Source,
                                      timeout => 1000,
                                      restart => permanent}),
      {ok, {#{strategy => one_for_one}, [Calculator]}}.

  add(A, B) ->
      case beamr:call(calculator, <<"add">>, [A, B], [{timeout, 1000}]) of
          {ok, [Sum]} -> {ok, Sum};
          {error, #{reason := Reason}} -> {error, Reason}
      end.
  """

  # The facade, function by function.
  @client ~S"""
  -module(beamr_client).
  -compile([export_all, nowarn_export_all]).

  compile(Source) -> beamr:compile(Source).
  compile(Source, Options) -> beamr:compile(Source, Options).
  compile_file(Path) -> beamr:compile_file(Path).

  instantiate(Source, Add) ->
      beamr:instantiate(Source, #{imports => #{<<"env">> => #{<<"add">> => Add}}, fuel => undefined}).

  instantiate_proplist(Source, Add) ->
      beamr:instantiate(Source, [{imports, #{<<"env">> => #{<<"add">> => Add}}}, {fuel, undefined}]).

  sum(Wasm) ->
      {ok, [3]} = beamr:call(Wasm, <<"sum">>, [1, 2]),
      {ok, [3]} = beamr:call(Wasm, <<"sum">>, [1, 2], [{timeout, 1000}, {scheduler, dirty}]),
      {ok, [3]} = beamr:call(Wasm, <<"sum">>, [1, 2], #{timeout => infinity}),
      ok.

  structs(Wasm) ->
      Point = beamr:layout([{x, f64}, {y, f64, [{offset, 16}]}], #{packed => true}),
      ok = beamr:write_struct(Wasm, 1024, Point, #{x => 1, y => 0.5}),
      {ok, #{x := 1.0, y := 0.5} = One} = beamr:read_struct(Wasm, 1024, Point),
      ok = beamr:update_struct(Wasm, 1024, Point, #{y => infinity}),
      {ok, [#{x := 1.0, y := infinity}]} = beamr:read_structs(Wasm, 1024, Point, 1, []),
      ok = beamr:write_structs(Wasm, 1024, Point, [One, One], #{memory => undefined}),
      {ok, [One, One]} = beamr:read_structs(Wasm, 1024, Point, 2),
      Text = beamr:layout([{at, {ptr, string}}]),
      ok = beamr:write_structs(Wasm, 2048, Text, [#{at => 0}, #{at => 2056}]),
      ok = beamr:write(Wasm, 2056, <<"text", 0>>),
      {ok, [#{at := undefined}, #{at := <<"text">>}]} =
          beamr:read_structs(Wasm, 2048, Text, 2, [follow]),
      {error, #{reason := missing_field, field := [y]} = Error} =
          beamr:write_struct(Wasm, 1024, Point, #{x => 1}),
      <<"the field y is missing">> = beamr:format_error(Error),
      {ok, [3]} = beamr:call_struct(Wasm, <<"sum">>, [1, 2], undefined),
      ok.

  views(Wasm) ->
      {ok, View} = beamr:view(Wasm, 1024, 16, [{memory, undefined}]),
      ok = 'Elixir.Beamr.View':write_i32(View, 12, -1),
      {ok, -1} = 'Elixir.Beamr.View':read_i32(View, 12),
      {error, #{reason := out_of_view, pointer := 1024}} = 'Elixir.Beamr.View':read_i32(View, 13),
      ok.

  allocators(Wasm) ->
      {ok, Bump} = beamr:bump_allocator(Wasm, #{base => 4096, limit => 8192}),
      {ok, 4096} = beamr:alloc(Bump, 10),
      {ok, 4112} = beamr:alloc(Bump, 10, #{align => 16, tag => undefined}),
      {error, #{reason := overlap, other := #{kind := bump}}} =
          beamr:stack_allocator(Wasm, [{base, 4096}]),
      {ok, Stack} = beamr:stack_allocator(Wasm, [{base, 8192}, {size, 64}]),
      ok = 'Elixir.Beamr.Allocator.Stack':mark(Stack),
      {ok, #{active := 2}} = 'Elixir.Beamr.Allocator':stats(Bump),
      ok = 'Elixir.Beamr.Allocator':close(Bump),
      {ok, _Malloc} = beamr:malloc_allocator(Wasm),
      ok.

  memory(Wasm) ->
      {ok, 65536} = beamr:size(Wasm),
      {ok, 65536} = beamr:size(Wasm, [{memory, undefined}]),
      ok = beamr:write(Wasm, 8, ["he", <<"llo">>, 0]),
      ok = beamr:write(Wasm, 8, "j", #{memory => <<"memory">>}),
      {ok, <<"jello">>} = beamr:read(Wasm, 8, 5),
      {ok, <<"jello">>} = beamr:read(Wasm, 8, 5, [{memory, <<"memory">>}]),
      {ok, <<"jello">>} = beamr:read_string(Wasm, 8),
      {ok, <<"jello">>} = beamr:read_string(Wasm, 8, 2),
      {ok, <<"jello">>} = beamr:read_string(Wasm, 8, 2, [{memory, <<"memory">>}]),
      {ok, Pointer} = beamr:write_string(Wasm, "hello"),
      {ok, <<"hello">>} = beamr:read_string(Wasm, Pointer),
      ok = beamr:free(Wasm, Pointer),
      {ok, Other} = beamr:malloc(Wasm, 10),
      true = is_integer(Other),
      {error, #{reason := out_of_bounds} = Error} = beamr:read(Wasm, 65536, 1),
      beamr:format_error(Error).

  numbers(Wasm) ->
      {ok, 1} = beamr:pages(Wasm),
      {ok, 1} = beamr:grow(Wasm, 0),
      true = beamr:is_valid_range(Wasm, 65536, 0),
      false = beamr:is_valid_range(Wasm, 65536, 1, #{memory => <<"memory">>}),
      ok = beamr:write_i8(Wasm, 0, -1),
      {ok, 255} = beamr:read_u8(Wasm, 0),
      ok = beamr:write_u16(Wasm, 0, 70000, [wrap]),
      {ok, 4464} = beamr:read_i16(Wasm, 0),
      ok = beamr:write_u32(Wasm, 0, -1, #{wrap => true, memory => undefined}),
      {ok, -1} = beamr:read_i32(Wasm, 0),
      {error, #{reason := value_out_of_range}} = beamr:write_i64(Wasm, 0, 1 bsl 63),
      ok = beamr:write_u64(Wasm, 0, 1 bsl 63),
      {ok, -9223372036854775808} = beamr:read_i64(Wasm, 0),
      ok = beamr:write_f32(Wasm, 0, infinity),
      {ok, infinity} = beamr:read_f32(Wasm, 0),
      ok = beamr:write_f64(Wasm, 0, 1.5),
      {ok, 1.5} = beamr:read_f64(Wasm, 0),
      ok = beamr:write_array(Wasm, 0, u8, [1, 2]),
      {ok, [1, 2]} = beamr:read_array(Wasm, 0, u8, 2),
      {ok, <<1, 2>>} = beamr:read_array(Wasm, 0, u8, 2, #{as => binary}),
      ok = beamr:write_many(Wasm, [{8, u8, 3}, {9, "four"}]),
      {ok, [3, <<"four">>]} = beamr:read_many(Wasm, [{8, u8}, {9, 4}]),
      ok.

  blocks(Wasm) ->
      {ok, 3} = beamr:write_utf8(Wasm, 0, <<"abc">>),
      {ok, <<"abc">>} = beamr:read_utf8(Wasm, 0, 3, [{invalid, error}]),
      ok = beamr:copy(Wasm, 3, 0, 3),
      ok = beamr:copy(Wasm, 6, {Wasm, 0}, 3),
      {ok, eq} = beamr:compare(Wasm, 0, 6, 3),
      ok = beamr:fill(Wasm, 0, $x, 3),
      {ok, gt} = beamr:compare(Wasm, 0, {Wasm, 6}, 3),
      {ok, 3} = beamr:find(Wasm, 0, 9, <<"abc">>),
      {ok, undefined} = beamr:find(Wasm, 0, 9, <<"abd">>),
      {ok, <<"78 78 78 61">>} = beamr:hexdump(Wasm, 0, 4),
      {ok, _} = beamr:hexdump(Wasm, 0, 4, #{format => canonical}),
      ok.

  ownership(Wasm) ->
      {ok, <<"hi">>} = beamr:with_string(Wasm, "hi", fun(P) -> element(2, beamr:read_string(Wasm, P)) end),
      {ok, {_, 2}} = beamr:with_bytes(Wasm, "hi", fun(P, L) -> {P, L} end),
      {ok, 1} = beamr:with_alloc(Wasm, 8, fun(_) -> element(2, beamr:held_count(Wasm)) end),
      {ok, 0} = beamr:with_alloc(Wasm, 8, #{allocator => {fun(8) -> {ok, 0} end, fun(0) -> ok end}}, fun(P) -> P end),
      {ok, []} = beamr:held(Wasm),
      {ok, Pointer} = beamr:malloc(Wasm, 5),
      Self = self(),
      {ok, [{Pointer, 5, Self}]} = beamr:held(Wasm),
      ok.

  globals(Wasm) ->
      {ok, 7} = beamr:get_global(Wasm, <<"g">>),
      ok = beamr:set_global(Wasm, <<"g">>, 8),
      {ok, 8} = beamr:get_global(Wasm, <<"g">>),
      {ok, undefined} = beamr:get_global(Wasm, <<"ref">>),
      ok = beamr:set_global(Wasm, <<"ref">>, {a, term}),
      {ok, {a, term}} = beamr:get_global(Wasm, <<"ref">>),
      ok = beamr:set_global(Wasm, <<"ref">>, undefined),
      {ok, undefined} = beamr:get_global(Wasm, <<"ref">>),
      ok.

  types(Module) -> {beamr:imports(Module), beamr:exports(Module)}.

  null(Wasm) ->
      {ok, [1]} = beamr:call(Wasm, <<"is_null">>, [undefined]),
      {ok, [0]} = beamr:call(Wasm, <<"is_null">>, [something]),
      {ok, [undefined]} = beamr:call(Wasm, <<"null">>, []),
      ok.

  null_in_import(Source) ->
      Self = self(),
      Import = fun(_Wasm, Term) -> Self ! {import, Term}, undefined end,
      {ok, Wasm} = beamr:instantiate(Source, [{imports, #{<<"env">> => #{<<"i">> => Import}}}]),
      {ok, [IsNull]} = beamr:call(Wasm, <<"f">>, []),
      receive {import, Term} -> {Term, IsNull} end.

  items(Source) ->
      Env = #{<<"memory">> => {memory, 2, undefined},
              <<"ref">> => {global, undefined},
              <<"t">> => table},
      {ok, Wasm} = beamr:instantiate(Source, #{imports => #{<<"env">> => Env}}),
      {ok, 131072} = beamr:size(Wasm),
      {ok, undefined} = beamr:get_global(Wasm, <<"ref">>),
      {ok, 3} = beamr:table_size(Wasm, <<"t">>),
      {error, #{imports := [#{problem := too_small, required := 1, provided := 0}]}} =
          beamr:instantiate(Source, #{imports => #{<<"env">> => Env#{<<"memory">> => {memory, 0}}}}),
      ok.

  serialized(Source, Folder) ->
      {ok, Module} = beamr:compile(Source, #{cache => Folder}),
      Binary = beamr:serialize(Module),
      {ok, Copy} = beamr:deserialize_trusted(Binary),
      {ok, Copy1} = beamr:deserialize_trusted(Binary, [{fuel, false}]),
      {error, #{reason := incompatible}} = beamr:deserialize_trusted(Binary, #{fuel => true}),
      {error, #{reason := damaged}} = beamr:deserialize_trusted(<<>>),
      [{ok, [3]}, {ok, [3]}] =
          [begin {ok, Wasm} = beamr:instantiate(M), beamr:call(Wasm, <<"add">>, [1, 2]) end || M <- [Copy, Copy1]],
      ok.

  fuel(Source) -> beamr:instantiate(Source, [{fuel, 100}]).

  stop(Wasm) ->
      ok = beamr:interrupt(Wasm),
      ok = beamr:close(Wasm),
      {error, #{reason := closed}} = beamr:call(Wasm, <<"sum">>, [1, 2]),
      ok.

  server(Options) -> beamr:start_link(Options).
  call(Guest, Function, Args) -> beamr:call(Guest, Function, Args).
  call(Guest, Function, Args, Options) -> beamr:call(Guest, Function, Args, Options).
  """

  @guest """
  (module $guest
    (import "env" "add" (func $import (param i32 i32) (result i32)))
    (memory (export "memory") 1)
    (global (export "g") (mut i32) (i32.const 7))
    (global (export "ref") (mut externref) (ref.null extern))
    (func (export "sum") (param i32 i32) (result i32)
      (call $import (local.get 0) (local.get 1)))
    (func (export "is_null") (param externref) (result i32) (ref.is_null (local.get 0)))
    (func (export "null") (result externref) (ref.null extern))
    #{Beamr.Case.bump_malloc()})
  """

  @calculator """
  (module $calculator
    (func (export "add") (param i32 i32) (result i32) (i32.add (local.get 0) (local.get 1)))
    (func (export "trap") unreachable)
    (func (export "loop") (loop (br 0))))
  """

  # Compiles the source of an Erlang module, and fails for warnings too.
  defp compile_erlang(source) do
    {:ok, tokens, _line} = source |> String.to_charlist() |> :erl_scan.string()

    forms =
      tokens
      |> expand_module_macro()
      |> Enum.chunk_while(
        [],
        fn
          {:dot, _} = dot, form -> {:cont, Enum.reverse([dot | form]), []}
          token, form -> {:cont, [token | form]}
        end,
        fn [] -> {:cont, []} end
      )
      |> Enum.map(fn form ->
        {:ok, form} = :erl_parse.parse_form(form)
        form
      end)

    assert {:ok, module, binary, []} = :compile.forms(forms, [:return, :warnings_as_errors])

    {:module, ^module} = :code.load_binary(module, ~c"test", binary)
    module
  end

  # What the preprocessor does with ?MODULE.
  defp expand_module_macro(tokens) do
    {:atom, _, module} = Enum.at(tokens, 3)
    expand(tokens, module)
  end

  defp expand([{:"?", line}, {:var, _, :MODULE} | rest], module),
    do: [{:atom, line, module} | expand(rest, module)]

  defp expand([token | rest], module), do: [token | expand(rest, module)]
  defp expand([], _module), do: []

  setup_all do
    {:ok, client: compile_erlang(@client), sup: compile_erlang(@guests_sup)}
  end

  defp wasm(client) do
    {:ok, wasm} = client.instantiate(@guest, fn _wasm, a, b -> a + b end)
    wasm
  end

  test "structs, views and allocators are reached", %{client: client} do
    assert client.structs(wasm(client)) == :ok
    assert client.views(wasm(client)) == :ok
    assert client.allocators(wasm(client)) == :ok
  end

  test "modules are compiled", %{client: client} do
    assert {:ok, %Beamr.Module{}} = client.compile(@guest)
    assert {:ok, %Beamr.Module{}} = client.compile(@guest, [:fuel])
    assert {:ok, %Beamr.Module{}} = client.compile(@guest, [{:fuel, true}])
    assert {:ok, %Beamr.Module{} = module} = client.compile(@guest, %{fuel: true})
    assert Beamr.Module.metered?(module)
  end

  test "errors are maps with a reason", %{client: client} do
    assert {:error, %{reason: :invalid_wat} = error} = client.compile("(module (nope))")
    assert :beamr.format_error(error) =~ "line 1"
  end

  @tag :tmp_dir
  test "files are named by strings of either kind", %{client: client, tmp_dir: dir} do
    path = Path.join(dir, "ge\u00e4st.wat")
    File.write!(path, @guest)
    assert {:ok, _module} = client.compile_file(path)
    assert {:ok, _module} = client.compile_file(String.to_charlist(path))
    assert {:error, %{reason: {:file, :enoent}}} = client.compile_file(~c"no/such.wasm")
  end

  test "arguments are a list", %{client: client} do
    wasm = wasm(client)

    for args <- [:none, [1 | 2]] do
      assert_raise FunctionClauseError, fn -> :beamr.call(wasm, "sum", args) end

      assert_raise FunctionClauseError, fn ->
        :beamr.call_struct(wasm, "sum", args, :undefined)
      end
    end
  end

  test "instances take maps and proplists", %{client: client} do
    add = fn _wasm, a, b -> a + b end
    assert {:ok, wasm} = client.instantiate(@guest, add)
    assert client.sum(wasm) == :ok
    assert {:ok, wasm} = client.instantiate_proplist(@guest, add)
    assert client.sum(wasm) == :ok
  end

  test "memory is read and written", %{client: client} do
    assert client.memory(wasm(client)) =~ "outside the memory"
  end

  test "numbers, blocks of bytes and text", %{client: client} do
    assert client.numbers(wasm(client)) == :ok
    assert client.blocks(wasm(client)) == :ok
  end

  test "what is allocated is freed, or listed", %{client: client} do
    assert client.ownership(wasm(client)) == :ok
  end

  test "globals are read and set", %{client: client} do
    assert client.globals(wasm(client)) == :ok
  end

  test "undefined is a null reference, in both directions", %{client: client} do
    assert client.null(wasm(client)) == :ok
  end

  test "undefined is a null reference for imports as well", %{client: client} do
    source = """
    (module
      (import "env" "i" (func $i (param externref) (result externref)))
      (func (export "f") (result i32) (ref.is_null (call $i (ref.null extern)))))
    """

    assert client.null_in_import(source) == {:undefined, 1}
  end

  test "memories, globals and tables are imported", %{client: client} do
    source = """
    (module
      (import "env" "memory" (memory 1))
      (import "env" "ref" (global externref))
      (import "env" "t" (table 3 funcref)))
    """

    assert client.items(source) == :ok
  end

  @tag :tmp_dir
  test "modules are serialized and cached", %{client: client, tmp_dir: folder} do
    assert client.serialized(@calculator, String.to_charlist(folder)) == :ok
    assert [_entry] = File.ls!(folder)
  end

  test "types have undefined where there is no maximum", %{client: client} do
    {:ok, module} = client.compile(@guest)

    assert {[{"env", "add", {:function, %{params: [:i32, :i32]}}}], exports} =
             client.types(module)

    assert {"memory", {:memory, %{minimum: 1, maximum: :undefined}}} in trim(exports)
  end

  defp trim(exports) do
    for {name, {:memory, type}} <- exports,
        do: {name, {:memory, Map.take(type, [:minimum, :maximum])}}
  end

  test "limits are options", %{client: client} do
    {:ok, wasm} = client.fuel(@calculator)
    assert {:error, %{reason: :out_of_fuel}} = client.call(wasm, "loop", [])
  end

  test "instances are closed", %{client: client} do
    assert client.stop(wasm(client)) == :ok
  end

  test "unknown options are refused", %{client: client} do
    assert_raise ArgumentError, fn -> client.call(wasm(client), "sum", [1, 2], tiemout: 5) end
    assert_raise ArgumentError, fn -> client.server(%{module: @calculator, nmae: :x}) end
  end

  test "servers are started with maps and proplists", %{client: client} do
    for options <- [
          %{module: @calculator, name: :undefined, init: :undefined},
          [module: @calculator, name: {:global, make_ref()}],
          [{:module, @calculator}, {:on_trap, :reset}, {:name, :erlang_guest}]
        ] do
      assert {:ok, pid} = client.server(options)
      assert client.call(pid, "add", [1, 2]) == {:ok, [3]}
      GenServer.stop(pid)
    end
  end

  @tag :tmp_dir
  test "a server's module may be a path of Erlang's kind", %{client: client, tmp_dir: dir} do
    path = Path.join(dir, "calculator.wat")
    File.write!(path, @calculator)
    assert {:ok, pid} = client.server(%{module: String.to_charlist(path)})
    assert client.call(pid, "add", [1, 2]) == {:ok, [3]}
  end

  test "a server that cannot start is an answer", %{client: client} do
    Process.flag(:trap_exit, true)
    assert {:error, %{reason: :imports}} = client.server(%{module: @guest})
  end

  test "a dead server is noproc", %{client: client} do
    assert {:noproc, _} = catch_exit(client.call(:nobody_of_this_name, "add", [1, 2]))
  end

  describe "an Erlang supervisor" do
    setup %{sup: sup} do
      pid =
        start_supervised!(%{id: sup, start: {sup, :start_link, [@calculator]}, type: :supervisor})

      %{pid: pid}
    end

    test "serves calls by name", %{sup: sup} do
      assert sup.add(1, 2) == {:ok, 3}
      assert sup.add(1, :two) == {:error, :argument}
    end

    test "has a child of a valid specification, compiled", %{pid: pid} do
      assert [{:calculator, child, :worker, [_]}] = :supervisor.which_children(pid)
      assert Process.whereis(:calculator) == child
      assert {:ok, %{start: {_, _, [opts]}}} = :supervisor.get_childspec(pid, :calculator)
      assert %Beamr.Module{} = opts[:module]
    end

    test "restarts a guest that trapped", %{sup: sup} do
      old = Process.whereis(:calculator)
      assert {:error, %{reason: :unreachable}} = :beamr.call(:calculator, "trap", [])
      eventually(fn -> Process.whereis(:calculator) not in [nil, old] end)
      assert sup.add(2, 3) == {:ok, 5}
    end
  end
end
